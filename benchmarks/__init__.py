"""The unlearning benchmarks by name. A new one is a file here and a line below."""

from benchmarks.base import Benchmark
from benchmarks.fictional import Fictional
from benchmarks.tofu import Tofu

BENCHMARKS: dict[str, type[Benchmark]] = {
    Fictional.name: Fictional,
    Tofu.name: Tofu,
}
