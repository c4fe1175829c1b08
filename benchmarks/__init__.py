"""The unlearning benchmarks by name. A new one is a file here and a line below."""

from benchmarks.base import Benchmark
from benchmarks.fictional import Fictional
from benchmarks.files import Files
from benchmarks.muse import Muse
from benchmarks.rwku import Rwku
from benchmarks.tofu import Tofu
from benchmarks.wmdp import Wmdp

BENCHMARKS: dict[str, type[Benchmark]] = {
    Fictional.name: Fictional,
    Files.name: Files,
    Tofu.name: Tofu,
    Muse.name: Muse,
    Wmdp.name: Wmdp,
    Rwku.name: Rwku,
}
