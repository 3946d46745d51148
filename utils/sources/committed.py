"""Models that lie in git, believed only as the bytes that were committed: ``data/models/<name>/SHA256SUMS``.

The sums are in the form of ``sha256sum``. The weights alone give a run its identity, so that a changed configuration or
tokenizer beside them has to be refused here.
"""

import re
from pathlib import Path

from utils.errors import CourseError
from utils.files import sha256_of, write_text
from utils.paths import MODELS, relative, worded

SUMS = "SHA256SUMS"
_READ = ("*.json", "*.safetensors")  # what a base is built from; the curve and the sums themselves are not
_NOT_READ = {"provenance.json"}


def write_sums(folder: Path) -> None:
    """Record the files of a base that was made anew."""
    names = sorted(path.name for pattern in _READ for path in folder.glob(pattern) if path.name not in _NOT_READ)
    write_text(folder / SUMS, "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names))


def committed_sums(name: str, *, made_by: str) -> dict[str, str]:
    """File -> sha256 of a committed model, each compared with the file.

    Parameters
    ----------
    name : str
        Of its folder in ``data/models``.
    made_by : str
        The command that makes it anew, for the sentence.

    Raises
    ------
    CourseError
        If a file is missing, may not be read, or is not what was committed.
    """
    folder = MODELS / name
    advice = f"bring it back with `git checkout -- {relative(folder)}`, or make the base anew with `{made_by}`"
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
        sums = {found[2]: found[1] for line in lines if (found := re.fullmatch(r"([0-9a-f]{64})  (\S+)", line))}
        if len(sums) != len(lines) or not sums:
            raise CourseError(f"{folder / SUMS} is damaged; {advice}.")
        for file, expected in sums.items():
            if sha256_of(folder / file) != expected:
                raise CourseError(f"{folder / file} is not the file that was committed; {advice}.")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise CourseError(f"{error.filename} is missing; {advice}.") from error
    except OSError as error:
        raise CourseError(worded(error, Path(error.filename or folder), "read")) from error
    return sums
