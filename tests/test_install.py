"""What installs this repository: the pins agree, and scripts start from any folder without having been installed."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT

tomllib = pytest.importorskip("tomllib")  # Python 3.11
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_uv_installs_what_requirements_txt_has():
    assert PROJECT["dependency-groups"]["scripts"] == lines("requirements.txt")
    assert PROJECT["tool"]["uv"]["default-groups"] == ["scripts"]


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("requirements*.txt")))
def test_requirements_are_pinned_and_name_no_folder(name):
    """pip takes a folder in a requirements file from where it is started, not from where the file is."""
    for line in lines(name):
        assert re.fullmatch(r'[\w-]+(\[\w+\])?==[\d.]+(; python_version (<|>=) "3\.\d+")?', line), line


def start(script: str, folder: Path) -> subprocess.CompletedProcess:
    """`python script --help` in another folder, with the packages of this Python but not with this repository's.

    -S leaves out the .pth files by which an editable installation adds it.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHONPATH"] = sysconfig.get_path("purelib")
    arguments = [sys.executable, "-S", str(ROOT / script), "--help"]
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("script", ["aspc_td3bc.py", "aspc_fql.py"])
def test_scripts_find_the_packages_beside_them(script, tmp_path):
    process = start(script, tmp_path)
    assert process.returncode == 0, process.stderr
    assert "--env-id" in process.stdout


def test_the_package_is_typed_and_has_a_command():
    assert (ROOT / "d4rl_gymnasium" / "py.typed").exists()
    assert PROJECT["project"]["scripts"] == {"d4rl-gymnasium": "d4rl_gymnasium.__main__:main"}


def test_readme_installs_the_packages_for_the_scripts_of_subfolders():
    commands = [line for line in (ROOT / "README.md").read_text().splitlines() if "-r requirements.txt" in line]
    assert commands and all(" -e . " in line for line in commands)
