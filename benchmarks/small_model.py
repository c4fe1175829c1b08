"""A small untrained Llama with a tokenizer trained on the texts at hand: for experiments from scratch on any text.

Texts come in, a model folder comes out. It has no chat template: prompts are plain ("Question: ... Answer:").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 2048
CONTEXT = 512


def write_model(texts: Sequence[str], folder: Path, seed: int) -> None:
    """Write a four-layer Llama of 3.1 million parameters and a byte-level BPE tokenizer of `texts` to `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    save_llama(tokenizer, folder, seed, hidden_size=256, intermediate_size=512, num_hidden_layers=4, context=CONTEXT)


def save_llama(
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    seed: int,
    *,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    context: int,
) -> None:
    """Write an untrained Llama of four heads and tied embeddings, its random weights from `seed`, with its tokenizer to
    `folder`. context: most tokens that it takes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=hidden_size,
                intermediate_size=intermediate_size,
                num_hidden_layers=num_hidden_layers,
                num_attention_heads=4,
                max_position_embeddings=context,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
