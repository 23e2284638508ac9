"""The Hugging Face hub that cannot be reached: its cache at once, and one sentence.

Here with a stand-in for its library; with the libraries themselves in tests/huggingface and
tests/rewards/test_rewards_libraries.py, where they are installed.
"""

import socket
import subprocess
import sys
import time
import urllib.request
from types import ModuleType, SimpleNamespace

import pytest

from esrl_fairseq import hub
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.hub import PARTS, hub_or_cache


class NotCached(Exception):
    """What the library says of a file that its cache lacks."""


class Offline(Exception):
    """What it says of any other request in offline mode."""


def ask(url, timeout):
    return urllib.request.urlopen(url, timeout=timeout)


@pytest.fixture
def library(monkeypatch):
    """A stand-in whose hub nobody listens at."""
    module = ModuleType("huggingface_hub")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    module.constants = SimpleNamespace(ENDPOINT=endpoint, HF_HUB_OFFLINE=False)
    module.utils = SimpleNamespace(get_session=lambda: SimpleNamespace(head=ask))
    module.errors = SimpleNamespace(LocalEntryNotFoundError=NotCached, OfflineModeIsEnabled=Offline)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    for part in PARTS:
        monkeypatch.setitem(sys.modules, f"huggingface_hub.{part}", getattr(module, part))
    return module


@pytest.fixture
def silent(library):
    """A hub that takes calls and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        library.constants.ENDPOINT = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield library


def test_what_is_cached_is_loaded(library):
    with hub_or_cache("some/model"):
        assert library.constants.HF_HUB_OFFLINE
    assert not library.constants.HF_HUB_OFFLINE


def test_older_libraries_learn_it_too(library, monkeypatch):
    """transformers 4 has a copy of the switch, huggingface_hub 0 asks it when a session is made."""
    older, forgotten = SimpleNamespace(_is_offline_mode=False), []
    monkeypatch.setitem(sys.modules, "transformers.utils.hub", older)
    library.utils.reset_sessions = lambda: forgotten.append(library.constants.HF_HUB_OFFLINE)
    with hub_or_cache("some/model"):
        assert older._is_offline_mode and forgotten == [True]
    assert not older._is_offline_mode and forgotten == [True, False]


@pytest.mark.parametrize("kind", [NotCached, Offline])
def test_what_is_not_cached_ends_in_a_sentence(kind, library):
    """However the library that loads wraps it."""
    with pytest.raises(ConnectionError, match="^http://.* cannot be reached, and its cache on"):
        with hub_or_cache("some/model"):
            try:
                raise kind
            except kind:
                raise KeyError("not supported")  # noqa: B904 (as COMET does)
    assert not library.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("kind", [OSError, EsrlError])
def test_other_errors_stay_what_they_are(kind, library):
    with pytest.raises(kind, match="broken file"), hub_or_cache("some/model"):
        raise kind("broken file")
    assert not library.constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_asked(library, monkeypatch):
    monkeypatch.setattr(library.utils, "get_session", lambda: SimpleNamespace(head=len_of_call))
    with hub_or_cache("some/model"):
        assert not library.constants.HF_HUB_OFFLINE


def len_of_call(url, timeout):
    return len(url)


def test_a_folder_asks_nobody(silent, tmp_path):
    start = time.monotonic()
    with hub_or_cache(str(tmp_path)):
        assert not silent.constants.HF_HUB_OFFLINE
    assert time.monotonic() - start < hub.SECONDS / 2


@pytest.mark.parametrize("limited", [True, False])
def test_a_silent_hub_is_not_waited_for(limited, silent, monkeypatch):
    """Nor a name server, whose time the library does not limit."""
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    if not limited:
        endless = SimpleNamespace(head=lambda url, timeout: time.sleep(4))
        monkeypatch.setattr(silent.utils, "get_session", lambda: endless)
    start = time.monotonic()
    with hub_or_cache("some/model"):
        assert silent.constants.HF_HUB_OFFLINE
    assert time.monotonic() - start < 2


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with hub_or_cache("some/model"):
        pass


ANSWERED = """
import http.server, os, threading
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
from esrl_fairseq.hub import hub_or_cache
with hub_or_cache("some/model"):
    import huggingface_hub
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
"""


def test_the_library_alone_reaches_a_hub():
    """In a process where nothing has imported its modules, which version 2 does not do itself."""
    pytest.importorskip("huggingface_hub")
    done = subprocess.run([sys.executable, "-c", ANSWERED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
