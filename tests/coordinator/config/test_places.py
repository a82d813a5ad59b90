"""Where code and data are, in place and for hosts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coordinator.config import load
from coordinator.domain import Sources
from coordinator.errors import ConfigError

OWN = {"nn_model": "mine:Net"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, which is not the study file's."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def project(tmp_path):
    """A folder with a module, a table and a folder of data."""
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "mine.py").write_text("")
    for name in ("table.csv", "data/table.csv"):
        (folder / name).write_text("1,2\n3,4\n")
    return folder


def study(project, text):
    path = project / "study.yaml"
    path.write_text(text)
    return path


def remote(source, overrides=()):
    return load(source, overrides, remote=True)


def training(config):
    return config.to_spec("s").training


def problems(source, **options):
    with pytest.raises(ConfigError) as error:
        load(source, **options)
    return [(problem.key, problem.message) for problem in error.value.problems]


# --- code -----------------------------------------------------------------------------------


def test_the_folder_of_the_study_file_is_sent(project, here):
    config = remote(study(project, "nn_model: mine:Net\n"))
    assert (config.sources.code, config.sources.module) == (project, "mine")
    assert (training(config).python_path, training(config).working_directory) == ((), "")
    assert config.notes == ()


def test_the_current_folder_is_sent_where_the_module_is_there(project, here):
    (here / "other").mkdir()
    assert remote(study(project, "nn_model: other.models:Net\n")).sources.code == here


def test_the_current_folder_is_sent_without_a_study_file(project, monkeypatch):
    monkeypatch.chdir(project)
    assert remote(OWN).sources.code == project
    assert remote("nn_model: mine:Net\n").sources.code == project


def test_the_folder_of_a_programs_script_is_sent_where_the_module_is_there(project, here, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(project), *sys.path])
    assert remote(OWN).sources.code == project


def test_a_module_that_is_not_there_is_the_hosts_and_said(project, here):
    config = remote(study(project, "nn_model: other:Net\n"))
    assert config.sources.code is None
    (note,) = config.notes
    assert f"there is no module other in {project} or {here}" in note


@pytest.mark.parametrize("name", ["code: ../project", "code: .", "code: {project}"])
def test_another_folder_is_named(project, here, name):
    text = f"nn_model: mine:Net\n{name.format(project=project)}\n"
    assert remote(study(project, text)).sources.code == project


def test_an_override_is_found_in_the_current_folder(project, here):
    (here / "lib").mkdir()
    assert remote(study(project, "nn_model: mine:Net\n"), ["code=lib"]).sources.code == here / "lib"


def test_code_that_is_no_folder(project, here):
    (problem,) = problems({**OWN, "code": str(project / "mine.py")})
    assert problem == ("code", f"{project / 'mine.py'}: is not a folder; name the one of your modules")


def test_nothing_is_sent_for_a_model_of_ours(project, here):
    config = remote(study(project, "code: .\n"))
    assert config.sources == Sources(runs=config.sources.runs)
    assert config.notes == ("code has no effect: Regressor comes with NHOP",)


def test_paths_of_the_hosts_stay_and_paths_of_this_machine_do_not_go(project, here):
    text = "nn_model: mine:Net\npython_path: [/opt/models, lib]\n"
    config = remote(study(project, text))
    assert (config.sources.code, training(config).python_path) == (None, ("/opt/models",))
    assert "python_path: lib has no effect on hosts" in config.notes[0]
    assert remote(study(project, f"{text}code: .\n")).sources.code == project


def test_in_place_nothing_is_sent_and_named_code_comes_first(project, here):
    (here / "lib").mkdir()
    config = load(study(project, f"nn_model: mine:Net\ncode: {here}/lib\npython_path: [.]\n"))
    assert config.sources == Sources()
    assert training(config).python_path == (str(here / "lib"), str(project))
    assert training(config).working_directory == str(here)


def test_in_place_modules_are_found_as_ever(project, here):
    path = study(project, "nn_model: mine:Net\n")
    assert training(load(path)).python_path == (str(project), str(here))


# --- data -----------------------------------------------------------------------------------


def test_data_is_sent_and_named_within(project, here):
    text = "load_data: true\ndata: data\nload_data_dir: table.csv\n"
    config = remote(study(project, text))
    assert config.sources.data == project / "data"
    assert training(config).settings["load_data_dir"] == "table.csv"
    assert "data_dir" not in training(config).settings


def test_in_place_data_is_where_it_is(project, here):
    text = "load_data: true\ndata: data\nload_data_dir: table.csv\n"
    settings = training(load(study(project, text))).settings
    assert settings["load_data_dir"] == str(project / "data" / "table.csv")
    assert settings["data_dir"] == str(project / "data")


def test_data_alone_is_what_is_loaded(project, here):
    config = remote(study(project, "load_data: true\ndata: table.csv\n"))
    assert (config.sources.data, training(config).settings["load_data_dir"]) == (
        project / "table.csv",
        "table.csv",
    )


@pytest.mark.parametrize(
    ("location", "within"), [("table.csv", "table.csv"), ("./data/table.csv", "table.csv")]
)
def test_a_relative_file_goes_along_by_itself(project, here, location, within):
    config = remote(study(project, f"load_data: true\nload_data_dir: {location}\n"))
    assert config.sources.data == project / location
    assert training(config).settings["load_data_dir"] == within


def test_a_relative_folder_goes_along(project, here):
    config = remote(study(project, "nn_model: mine:Net\nload_data: true\nload_data_dir: data\n"))
    assert (config.sources.data, training(config).settings["load_data_dir"]) == (project / "data", ".")


def test_an_absolute_path_is_the_hosts(project, here):
    config = remote(study(project, "load_data: true\nload_data_dir: /data/none.csv\n"))
    assert (config.sources.data, training(config).settings["load_data_dir"]) == (None, "/data/none.csv")
    assert problems({"load_data": True, "load_data_dir": "/data/none.csv"})


def test_an_address_is_nobodys_path(project, here):
    config = remote(study(project, "nn_model: mine:Net\nload_data: true\nload_data_dir: s3://bucket/t.csv\n"))
    assert (config.sources.data, training(config).settings["load_data_dir"]) == (None, "s3://bucket/t.csv")


def test_what_leads_out_of_data_is_refused(project, here):
    text = "load_data: true\ndata: data\nload_data_dir: ../table.csv\n"
    ((key, words),) = problems(study(project, text))
    assert key == "load_data_dir"
    assert words == f"{project / 'table.csv'}: is not within data, {project / 'data'}"


def test_data_that_is_not_there(project, here):
    """Which is one problem, of the key that was given."""
    ((key, words),) = problems({"load_data": True, "data": str(project / "none")}, remote=True)
    assert (key, words) == ("data", f"{project / 'none'}: does not exist")


def test_data_that_is_not_loaded_is_not_sent(project, here):
    config = remote(study(project, "data: data\n"))
    assert config.sources.data is None
    assert config.notes == ("data has no effect: load_data is false",)


def test_a_model_of_the_users_may_use_data_as_it_likes(project, here):
    config = remote(study(project, "nn_model: mine:Net\ndata: data\n"))
    assert config.sources.data == project / "data"
    assert training(load(study(project, "nn_model: mine:Net\ndata: data\n"))).settings["data_dir"] == str(
        project / "data"
    )


# --- once more ------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "nn_model: mine:Net\ndata: data\n",
        "load_data: true\nload_data_dir: table.csv\ndata: data\n",
    ],
)
def test_the_resolved_configuration_sends_the_same(project, here, text, first):
    path = study(project, text)
    again = remote(load(path, remote=first).to_yaml())
    assert again.sources == remote(path).sources
    assert training(again).settings.keys() == training(remote(path)).settings.keys()


def test_a_table_that_went_along_does_so_again(project, here):
    config = remote(study(project, "load_data: true\nload_data_dir: table.csv\n"))
    again = remote(config.to_yaml())
    assert again.sources.data == project / "table.csv"
    assert training(again).settings == training(config).settings | {"seed": again.seed}


def test_results_are_named_so_that_they_stay(project, here):
    config = remote(study(project, "nn_model: mine:Net\ntrain_log_dir: logs\n"))
    assert set(config.sources.runs) == {Path(project, "logs"), Path(here, "logs")}
