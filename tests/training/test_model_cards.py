from pathlib import Path

import pytest

from eomt.configuration.recipes import RECIPES
from model_cards.make import all_cards, main, recipe_card

FOLDER = Path(__file__).parent.parent.parent / "model_cards"


def test_committed_cards_are_what_the_configuration_says():
    assert {path.name for path in FOLDER.glob("*.md")} == set(all_cards())
    for name, card in all_cards().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == card, "run `python -m model_cards.make`"


@pytest.mark.parametrize("name", RECIPES)
def test_card_states_the_essentials(name):
    recipe, card = RECIPES[name], recipe_card(RECIPES[name])
    for fact in (
        f"eomt train --recipe {name} --data PATH",
        f"**{recipe.reported.value} {recipe.metric}**",
        f"{recipe.total_steps:,}",
        recipe.backbone,
        "## License",
        "## Limits",
        "Not re-measured here",
    ):
        assert fact in card
    assert "None" not in card


def test_main_writes_every_card(tmp_path):
    main(str(tmp_path / "cards"))
    assert len(list((tmp_path / "cards").iterdir())) == len(RECIPES) + 1
