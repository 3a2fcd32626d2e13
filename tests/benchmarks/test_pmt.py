"""`benchmarks.pmt` with small images: every case runs, and the page is filled."""

import shutil

import pytest

from benchmarks import pmt


def test_the_page_is_filled(tmp_path, monkeypatch):
    page = tmp_path / "pmt.md"
    shutil.copy(pmt.PAGE, page)
    monkeypatch.setattr(pmt, "measured", lambda what, kind, side: (float(side), 1.0))
    pmt.main(["--page", str(page), "--side", "32"])
    text = page.read_text()
    for name in (*pmt.TOGETHER.values(), *pmt.STEPS.values()):
        assert f"| {name} | 32.00 | 1.00 | 1.0 GiB |" in text


@pytest.mark.slow
def test_the_cases_run(monkeypatch, capsys):
    monkeypatch.setattr(pmt, "REPEATS", 1)
    for what, kind in (("three", "shared"), ("step", "cached")):
        pmt.main([what, kind, "--side", "64"])
        took, memory = map(float, capsys.readouterr().out.split()[-2:])
        assert took > 0
        assert memory > 1e6
