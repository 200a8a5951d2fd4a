"""Reader of NIST's vector files, as packaged by cryptography_vectors."""

from collections.abc import Iterator

from cryptography_vectors import open_vector_file


def read(path: str) -> Iterator[dict[str, str]]:
    """Yield each case of a file as fields; a bare word (FAIL) has no value, the [SECTION] is the field "section"."""
    section = ""
    case: dict[str, str] = {}
    with open_vector_file(path, "r") as file:
        for raw in [*file, ""]:
            line = raw.strip()
            if line and not line.startswith(("#", "[")):
                name, _, value = line.partition("=")
                case[name.strip()] = value.strip()
                continue
            if len(case) > 1:
                yield {**case, "section": section}
            case = {}
            if line.startswith("["):
                section = line.strip("[]")
