#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One cache, two programs: what `lorikeet pull` puts into it is read by the Python client, and the other way round, against the stand-in of the hub.

Usage: hub_cache.py BINARY   (PyPI: huggingface_hub, and transformers for one of the checks)
"""
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "hub"))
from stand_in import Hub  # noqa: E402

BINARY = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "build/cpu-release/bin/lorikeet")
DEMO = ROOT / "examples" / "demo"


def directory(path: pathlib.Path) -> dict:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def tree(path: pathlib.Path) -> dict:
    """What lies where, but for locks and what only newer clients write."""
    return {str(p.relative_to(path)): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in sorted(path.rglob("*"))
            if (p.is_symlink() or p.is_file()) and p.relative_to(path).parts[0] not in (".locks", "trees") and "trees" not in p.parts and p.name != "CACHEDIR.TAG"
            and ".no_exist" not in p.parts}


def about_models(hub: Hub) -> list:
    """The client also asks for other things, such as who may be running it."""
    return [r for r in hub.requests if "/acme/" in r.path]


FILES = directory(DEMO / "model")
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Place:
    """A cache of its own, in this process's client and for ours."""

    def __init__(self, hub: Hub, directory: str, **variables: str):
        self.home = pathlib.Path(directory)
        self.cache = self.home / "hub"
        self.environment = {**os.environ, "HF_HOME": directory, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", **variables}

    def ours(self, name: str, **variables: str) -> pathlib.Path:
        done = subprocess.run([BINARY, "pull", name], capture_output=True, text=True, check=False, timeout=120, env={**self.environment, **variables})
        assert done.returncode == 0, done.stderr
        return pathlib.Path(done.stdout.strip())

    def theirs(self, code: str, **variables: str) -> str:
        # A process of its own: the client reads its variables when it is imported.
        done = subprocess.run([sys.executable, "-c", "from huggingface_hub import *\n" + code], capture_output=True, text=True, check=False, timeout=300,
                              env={**self.environment, **variables})
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()


@check
def it_reads_ours(hub: Hub, place: Place):
    commit = hub.add("acme/tiny", FILES)
    snapshot = place.ours("acme/tiny")
    count = len(about_models(hub))
    for variables in ({}, {"HF_HUB_OFFLINE": "1"}):
        path = place.theirs("print(snapshot_download('acme/tiny', local_files_only=True))", **variables)
        assert pathlib.Path(path) == snapshot, path
    for name in FILES:
        path = place.theirs(f"print(hf_hub_download('acme/tiny', {name!r}, local_files_only=True))")
        assert pathlib.Path(path) == snapshot / name
    path = place.theirs(f"print(hf_hub_download('acme/tiny', 'config.json', revision={commit!r}))")
    assert pathlib.Path(path) == snapshot / "config.json"
    assert len(about_models(hub)) == count, about_models(hub)[count:]
    assert place.theirs("print(try_to_load_from_cache('acme/tiny', 'chat_template.jinja') is _CACHED_NO_EXIST)") == "True"
    # Online it finds nothing to fetch.
    place.theirs("snapshot_download('acme/tiny')")
    assert not [r for r in about_models(hub)[count:] if r.method == "GET" and not r.path.startswith("/api/")]


@check
def we_read_its(hub: Hub, place: Place):
    hub.add("acme/tiny", FILES)
    snapshot = place.theirs("print(snapshot_download('acme/tiny'))")
    count = len(hub.of_files())
    assert str(place.ours("acme/tiny", HF_HUB_OFFLINE="1")) == snapshot
    assert str(place.ours("acme/tiny")) == snapshot
    assert len(hub.of_files()) == count


@check
def both_lay_the_same_files(hub: Hub, place: Place):
    hub.add("acme/tiny", FILES | {"additional_chat_templates/rag.jinja": b"{{ messages }}"})
    hub.commit("acme/tiny", FILES, branch="feature/x")
    with tempfile.TemporaryDirectory() as other:
        its = Place(hub, other)
        for name, revision in (("acme/tiny", "main"), ("acme/tiny@feature/x", "feature/x")):
            place.ours(name)
            its.theirs(f"snapshot_download('acme/tiny', revision={revision!r})")
        assert tree(place.cache) == tree(its.cache), (sorted(tree(place.cache)), sorted(tree(its.cache)))
        modes = [{str(p.relative_to(c)): oct(p.stat().st_mode) for p in (c / "models--acme--tiny" / "blobs").iterdir()} for c in (place.cache, its.cache)]
        assert modes[0] == modes[1], modes


@check
def each_goes_on_with_what_the_other_began(hub: Hub, place: Place):
    hub.add("acme/tiny", FILES)
    place.theirs("hf_hub_download('acme/tiny', 'model.safetensors')")
    gets = len(hub.gets(end="model.safetensors"))
    snapshot = place.ours("acme/tiny")
    assert directory(snapshot) == FILES
    assert len(hub.gets(end="model.safetensors")) == gets
    hub.commit("acme/tiny", FILES | {"config.json": FILES["config.json"] + b"\n"})
    path = pathlib.Path(place.theirs("print(snapshot_download('acme/tiny'))"))
    assert path.name != snapshot.name and (path / "config.json").read_bytes() == FILES["config.json"] + b"\n"
    assert place.ours("acme/tiny") == path
    assert len(hub.gets(end="model.safetensors")) == gets


@check
def they_wait_for_each_other(hub: Hub, place: Place):
    import filelock
    hub.add("acme/tiny", FILES)
    place.ours("acme/tiny")
    [lock] = [p for p in (place.cache / ".locks" / "models--acme--tiny").iterdir() if len(p.name) == 64 + len(".lock")]
    import shutil
    shutil.rmtree(place.cache / "models--acme--tiny")
    with filelock.FileLock(lock):
        ours = subprocess.Popen([BINARY, "pull", "acme/tiny"], env=place.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        line = ""
        while "waiting" not in line:
            line = ours.stderr.readline()
            assert line, "it ended without waiting"
    assert ours.wait(60) == 0


@check
def the_token_is_the_one_it_stored(hub: Hub, place: Place):
    hub.add("acme/tiny", FILES, private=True)
    (place.home / "token").write_text(hub.token)
    assert directory(place.ours("acme/tiny")) == FILES
    place.theirs("snapshot_download('acme/tiny')")


@check
def its_cache_report_understands_ours(hub: Hub, place: Place):
    commit = hub.add("acme/tiny", FILES)
    place.ours("acme/tiny")
    text = place.theirs("r = scan_cache_dir(); [repo] = r.repos; [rev] = repo.revisions; print(repo.repo_id, rev.commit_hash, sorted(rev.refs), len(r.warnings), rev.nb_files)")
    assert text == f"acme/tiny {commit} ['main'] 0 {len(FILES)}", text


@check
def transformers_loads_ours_offline(hub: Hub, place: Place):
    try:
        import transformers  # noqa: F401
    except ImportError:
        return "SKIPPED: no transformers"
    hub.add("acme/tiny", FILES)
    place.ours("acme/tiny")
    code = "import transformers as t; t.AutoModelForCausalLM.from_pretrained('acme/tiny'); print(len(t.AutoTokenizer.from_pretrained('acme/tiny')))"
    assert int(place.theirs(code, HF_HUB_OFFLINE="1").splitlines()[-1]) > 0
    return None


def main() -> int:
    try:
        import huggingface_hub
    except ImportError:
        print("SKIPPED: pip install -r tools/conformance/requirements.txt")
        return 77
    print(f"huggingface_hub {huggingface_hub.__version__}")
    failed = 0
    for function in CHECKS:
        with Hub() as hub, tempfile.TemporaryDirectory() as home:
            try:
                outcome = function(hub, Place(hub, home)) or "pass"
            except AssertionError as error:
                outcome = f"FAIL in line {error.__traceback__.tb_next.tb_lineno}: {error}"
                failed += 1
        print(f"{function.__name__.replace('_', ' '):45} {outcome}")
    print(f"{len(CHECKS) - failed} of {len(CHECKS)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
