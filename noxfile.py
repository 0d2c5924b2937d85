"""The gate on another torch: ``nox -s tests-2.11 tests-2.14``, each in an environment of its own.

What follows ``--`` is for pytest, such as ``-- --impl logits.fused``.
"""

import nox

for version in ("2.11", "2.12", "2.13", "2.14"):

    @nox.session(name=f"tests-{version}")
    def gate(session: nox.Session, version: str = version) -> None:
        """The newest patch of this torch, and the newest of all else."""
        session.install(f"torch=={version}.*", "--editable", ".[dev]")
        session.run("pytest", "tests/gate", *session.posargs)
