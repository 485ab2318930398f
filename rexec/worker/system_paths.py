"""What of a machine a program needs to run at all, and has no secrets in: the one list, whatever the isolation."""

from __future__ import annotations

from typing import Final

PROGRAMS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""Programs, libraries, headers. Toolchains elsewhere (/opt, /nix/store, ~/.rustup) are for `readable`."""

ETC: Final = tuple(
    f"/etc/{name}"
    # One by one: /etc also has password hashes, private keys and tokens, and a rule cannot leave out a part.
    for name in (
        *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives"),  # where libraries and tools are
        *("passwd", "group", "nsswitch.conf"),  # names of users
        *("hosts", "host.conf", "resolv.conf", "gai.conf", "services", "protocols"),  # names of machines
        *("localtime", "timezone", "locale.alias", "locale.conf", "os-release", "debian_version", "lsb-release"),
        *(
            "ssl/certs",
            "ssl/openssl.cnf",
            "ca-certificates",
            "pki/tls/certs",
            "pki/ca-trust/extracted",
        ),  # no private keys
        *("profile", "bash.bashrc", "inputrc", "terminfo", "gitconfig", "mime.types", "magic"),  # of common tools
        *("perl", "python3", "java", "fonts", "xml", "sgml"),  # of languages and documents
        *(f"java-{version}-openjdk" for version in (8, 11, 17, 21, 25)),  # without which Debian's JDKs do not start
    )
)
