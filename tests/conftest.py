import pytest
from stage_project import Project, make_project


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Project:
    """A checkout of its own with a tiny prepared dataset and a small CLIP."""
    made = make_project(tmp_path_factory.mktemp("stages"))
    yield made
    made.server.close()
