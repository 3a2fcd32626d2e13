"""`make bench` (`python -m benchmarks [NAME …]`): every benchmark, or those named. Run it on a quiet machine."""

import sys
from importlib import import_module

NAMES = ("speed", "engines")


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"there is no benchmark {unknown[0]!r}; choose from {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in names or NAMES:
        import_module(f"benchmarks.{name}").main([])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
