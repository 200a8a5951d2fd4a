"""The URI policy: what passes, and every way to make libvirt run a program or skip a check."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inventory.engine.hypervisor import BadUri
from inventory.engine.uri import Transport, parse, parse_migration


@pytest.mark.parametrize(
    ("text", "transport", "host"),
    [
        ("qemu:///system", Transport.UNIX, ""),
        ("qemu:///session?socket=/run/lab/libvirt-sock", Transport.UNIX, ""),
        ("qemu+unix:///session?socket=/run/lab/libvirt-sock", Transport.UNIX, ""),
        ("qemu+tls://kvm01.example.org/system", Transport.TLS, "kvm01.example.org"),
        ("qemu+tls://127.0.0.1:16999/session?pkipath=/var/lib/lab/pki", Transport.TLS, "127.0.0.1"),
        ("qemu+tls://[::1]:16514/system", Transport.TLS, "::1"),
        ("qemu+ssh://root@kvm01/system?keyfile=/etc/keys/id_ed25519", Transport.SSH,
         "kvm01"),
        ("qemu+ssh://kvm01:2222/system?mode=direct", Transport.SSH, "kvm01"),
    ],
)  # fmt: skip
def test_accepts(text: str, transport: Transport, host: str) -> None:
    uri = parse(text)
    assert (uri.text, uri.transport, uri.host) == (text, transport, host)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "uri_malformed"),
        ("qemu", "uri_malformed"),
        ("x" * 501, "uri_malformed"),
        ("qemu+tls:///system", "uri_host"),
        ("qemu://kvm01/system", "uri_transport"),
        ("qemu+ext://kvm01/system?command=/bin/sh", "uri_scheme"),
        ("qemu+libssh2://kvm01/system", "uri_scheme"),
        ("qemu+tcp://kvm01/system", "uri_scheme"),
        ("QEMU+SSH://kvm01/system", "uri_scheme"),
        ("xen:///system", "uri_scheme"),
        ("test:///default", "uri_scheme"),
        ("qemu+ssh://kvm01/system?command=/tmp/evil", "uri_parameter"),
        ("qemu+ssh://kvm01/system?Command=/tmp/evil", "uri_parameter"),
        ("qemu+ssh://kvm01/system?netcat=/tmp/evil", "uri_parameter"),
        ("qemu+ssh://kvm01/system?no_verify=1", "uri_parameter"),
        ("qemu+tls://kvm01/system?no_verify=1", "uri_parameter"),
        ("qemu+ssh://kvm01/system?no_tty=1", "uri_parameter"),
        ("qemu+ssh://kvm01/system?sshauth=password", "uri_parameter"),
        ("qemu+ssh://kvm01/system?authfile=/etc/shadow", "uri_parameter"),
        ("qemu+ssh://kvm01/system?socket=/x;command=/tmp/evil", "uri_malformed"),
        ("qemu+ssh://kvm01/system?socket=/x%26command=/tmp/evil", "uri_malformed"),
        ("qemu+ssh://kvm01/system?socket=/x#y", "uri_malformed"),
        ("qemu+ssh://kvm01/system?socket=$(id)", "uri_malformed"),
        ("qemu+ssh://kvm01/system?socket=relative", "uri_parameter"),
        ("qemu+ssh://kvm01/system?socket=/a/../b", "uri_parameter"),
        ("qemu+ssh://kvm01/system?socket=/a&socket=/b", "uri_parameter"),
        ("qemu+ssh://kvm01/system?mode=evil", "uri_parameter"),
        ("qemu+tls://kvm01/system?keyfile=/k", "uri_parameter"),
        ("qemu+ssh://kvm01/system?pkipath=/k", "uri_parameter"),
        ("qemu+ssh://-oProxyCommand=evil/system", "uri_host"),
        ("qemu+ssh://-l@kvm01/system", "uri_user"),
        ("qemu+ssh://root:secret@kvm01/system", "uri_password"),
        ("qemu+tls://root@kvm01/system", "uri_user"),
        ("qemu+tls://kvm01:99999/system", "uri_malformed"),
        ("qemu+tls://kvm01:/system", "uri_malformed"),
        ("qemu+tls://kvm01:0/system", "uri_host"),
        ("qemu+tls://kvm01/embed?root=/x", "uri_path"),
        ("qemu+tls://kvm01/", "uri_path"),
        ("qemu+tls://kvm 01/system", "uri_malformed"),
        ("qemu+tls://kvm01/system\n", "uri_malformed"),
        ("qemu+tls://kvm01/system?socket=http://x", "uri_malformed"),
    ],
)
def test_refuses(text: str, code: str) -> None:
    with pytest.raises(BadUri) as caught:
        parse(text)
    assert caught.value.code == code
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


def test_test_driver_only_where_it_is_allowed() -> None:
    assert parse("test:///var/tmp/node.xml", allow_test=True).transport is Transport.TEST
    with pytest.raises(BadUri):
        parse("test://kvm01/default", allow_test=True)


@pytest.mark.parametrize("text", ["qemu:///system", "qemu:///session?socket=/x", "test:///default"])
def test_migration_needs_an_encrypted_way_to_a_named_host(text: str) -> None:
    with pytest.raises(BadUri):
        parse_migration(text)
    assert parse_migration("qemu+tls://kvm02/system").is_encrypted


@given(st.text(alphabet=st.sampled_from("qemu+tlssh:/@?&=;%.- []0command"), max_size=60))
def test_whatever_comes_it_is_refused_or_harmless(text: str) -> None:
    for candidate in (text, f"qemu+ssh://h/system?{text}", f"qemu+ssh://{text}/system"):
        try:
            uri = parse(candidate, allow_test=True)
        except BadUri:
            continue
        query = uri.text.partition("?")[2]
        names = {part.partition("=")[0] for part in query.split("&")} - {""}
        assert names <= {"socket", "pkipath", "keyfile", "mode"}
        assert not {"%", ";", " ", "#"} & set(uri.text)
        assert not uri.host.startswith("-")
