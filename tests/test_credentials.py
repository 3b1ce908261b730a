"""Where a service account's key is read from: systemd's copy of it, where it made one."""

from pathlib import Path

import pytest

from stager import gcs


@pytest.mark.parametrize(
    ("loaded", "read"),
    [
        pytest.param('{"type": 1}', "loaded/key.json", id="systemd loaded it"),
        pytest.param("{}", "key.json", id="the unit's stand-in for none"),
        pytest.param(None, "key.json", id="not in this service's unit"),
    ],
)
def test_a_key_is_read_from_where_systemd_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: str | None, read: str
) -> None:
    (tmp_path / "loaded").mkdir()
    if loaded is not None:
        (tmp_path / "loaded/key.json").write_text(loaded)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "loaded"))
    path = str(tmp_path / "key.json")
    assert gcs._key_file(path) == str(tmp_path / read)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert gcs._key_file(path) == path
