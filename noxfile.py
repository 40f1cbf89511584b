"""One command for each habit: `nox -s check`, `test`, `generate`, `docs`; in the environment that calls them."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["check", "test"]


@nox.session
def check(session: nox.Session) -> None:
    """Lint, check the format and the types, and see that the generated pages are those of the code."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("python", "-m", "tools.generate", "--check")


@nox.session
def test(session: nox.Session) -> None:
    """Run the tests with branch coverage of the package."""
    session.run("pytest", "--cov", *session.posargs)


@nox.session
def generate(session: nox.Session) -> None:
    """Write the pages of the reference anew from the code."""
    session.run("python", "-m", "tools.generate")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into site/; a warning is an error."""
    session.run("mkdocs", "build", "--strict")
