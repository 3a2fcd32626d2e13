"""The committed model cards."""

from pathlib import Path

from model_cards.make import all_cards

FOLDER = Path(__file__).parent.parent.parent / "model_cards"


def test_committed_cards_follow_from_the_configuration():
    assert {path.name for path in FOLDER.glob("*.md")} == set(all_cards())
    for name, card in all_cards().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == card, "run python -m model_cards.make"
