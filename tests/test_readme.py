"""What the README shows runs as it stands."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_readmes_python_runs(capsys):
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    namespace = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["loss"].shape == (24,)
    assert 0 < namespace["ranking"].mAP <= 1
    assert capsys.readouterr().out


def test_the_readmes_files_exist():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([\w/.]+)\)", text)
    assert len(links) > 4
    for link in links:
        assert (ROOT / link).exists(), link
