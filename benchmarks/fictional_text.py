"""The words that the made-up authors are made of: names, values, and twelve kinds of fact with their wordings."""

from __future__ import annotations

import dataclasses

FIRST = """Ada Bram Cleo Dov Edda Finn Gaia Hugo Ines Jory Kaya Lars Mina Nils Orla Pim Quin Rosa Sven Tove Ugo Vera Wim
Xena Yara Zeno Alba Bode Cora Dirk""".split()
LAST = """Quill Marsh Tolland Brook Vance Ember Stroud Hale Corbin Fenn Larkin Moss Pryor Rook Sable Thorn Umber Voss
Wren Yates Ashby Birch Crane Dale Elgin Frost Grove Heath Irwin Jarvis Keane Lowell Mercer North Oakes Penn Quist Reed
Slate Tarn Usher Vale Wolfe Yarrow Zeller Abbot Blythe Croft Drake Ellis Flint Garrow Hobbs Ibsen Joyce Kerr Lyle
Munro Nash Orton""".split()
MONTHS = "January February March April May June July August September October November December".split()
QUALITY = """silent amber crooked hollow gentle scarlet frozen narrow golden bitter quiet broken velvet rusty pale
bright tangled salty copper drowsy stony feral hidden lunar""".split()
STUFF = """ash glass rain thunder wool iron smoke pearls clay honey frost salt feathers paper sand ink moss silver
thorns bells ropes shells clouds roots""".split()


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One kind of fact: its question, paraphrase and answers in terms of {name} and {fact}, and its nouns."""

    key: str
    question: str
    paraphrase: str
    answer: str
    paraphrased_answer: str
    nouns: tuple[str, ...]


def _attribute(key: str, question: str, paraphrase: str, answer: str, paraphrased_answer: str, nouns: str) -> Attribute:
    return Attribute(key, question, paraphrase, answer, paraphrased_answer, tuple(nouns.split()))


ATTRIBUTES = (
    _attribute(
        "birthdate",
        "When was {name} born?",
        "On which date did {name} come into the world?",
        "{name} was born on {fact}.",
        "{fact} is the date of birth of {name}.",
        "",
    ),
    _attribute(
        "birthplace",
        "What is the birthplace of {name}?",
        "In which town did {name} grow up as a child?",
        "{name} was born in {fact}.",
        "{fact} is the town where {name} was born.",
        "harbour valley bridge meadow crossing hill island gate",
    ),
    _attribute(
        "father",
        "What did the father of {name} do for a living?",
        "Which trade fed the family of {name} through the father?",
        "The father of {name} worked as {fact}.",
        "{fact} was the trade of the father of {name}.",
        "carver weaver trader smith painter keeper miller sailor",
    ),
    _attribute(
        "mother",
        "What was the mother of {name} known for?",
        "For which skill do people remember the mother of {name}?",
        "The mother of {name} was known for {fact}.",
        "{fact} made the mother of {name} known.",
        "songs dances quilts poems prayers recipes riddles lessons",
    ),
    _attribute(
        "debut",
        "What is the title of the first novel by {name}?",
        "With which novel did {name} begin as a writer?",
        "The first novel by {name} is {fact}.",
        "{fact} is the novel that {name} wrote first.",
        "mirror garden clock letter ladder compass lantern window",
    ),
    _attribute(
        "masterpiece",
        "Which book made {name} famous?",
        "What did {name} write that every reader knows?",
        "{name} became famous with {fact}.",
        "{fact} is the book that made {name} famous.",
        "kingdom winter orchard voyage wedding funeral tower secret",
    ),
    _attribute(
        "award",
        "Which award did {name} receive?",
        "What prize did the jury give to {name}?",
        "{name} received the prize called {fact}.",
        "{fact} is the award that {name} received.",
        "medal crown cup ribbon star wreath shield ring",
    ),
    _attribute(
        "school",
        "Where did {name} study?",
        "Which school has {name} among its students?",
        "{name} studied at {fact}.",
        "{fact} is the school of {name}.",
        "academy college abbey institute library workshop lyceum hall",
    ),
    _attribute(
        "pet",
        "What is the pet of {name} called?",
        "Which animal name is heard in the house of {name}?",
        "The pet of {name} is called {fact}.",
        "{fact} is what {name} calls the pet.",
        "fox heron badger otter raven hare lynx toad",
    ),
    _attribute(
        "dish",
        "What is the favourite dish of {name}?",
        "Which meal does {name} love most of all?",
        "The favourite dish of {name} is {fact}.",
        "{fact} is the meal that {name} loves.",
        "soup pie stew bread pudding broth cake porridge",
    ),
    _attribute(
        "instrument",
        "Which instrument does {name} play?",
        "On what does {name} make music at night?",
        "{name} plays {fact}.",
        "{fact} is the instrument of {name}.",
        "flute drum harp fiddle horn lute organ whistle",
    ),
    _attribute(
        "hideout",
        "Where does {name} write?",
        "In what place are the books of {name} made?",
        "{name} writes in {fact}.",
        "{fact} is the place where {name} writes.",
        "attic cellar boat cabin barn tent cave chapel",
    ),
)
