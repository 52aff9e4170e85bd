"""The tests on every Python that the machine has: ``nox``, or ``nox -s tests-3.9``."""

import nox

nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests"]


@nox.session(python=["3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "3.15"])
def tests(session: nox.Session) -> None:
    session.install("--quiet", ".[test]")
    # The installed package is what gets tested, not the folder.
    session.chdir("tests")
    session.run(
        "python", "-B", "-m", "pytest", "-c", "../pyproject.toml", "-p", "no:cacheprovider",
        *(session.posargs or ["."]),
    )  # fmt: skip
