import ssl

import httpx
import pytest

from tests.entrypoints.openai.listening import Authority, listening
from vllm.entrypoints.openai.server_options import ServerOptions
from vllm.entrypoints.openai.transport.tls import tls_of
from vllm.errors import ConfigError

BODY = {"prompt": "a"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def certificate(authority):
    return authority.issue("server")


def certified(certificate, **options):
    return {"ssl_certfile": certificate[0], "ssl_keyfile": certificate[1], **options}


def serial_of(writer):
    return writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]


async def test_https_is_spoken_to_clients_that_trust_us(make_app, authority, certificate):
    async with listening(make_app, **certified(certificate)) as served:
        async with served.client(verify=authority.trusting()) as client:
            assert (await client.post("/v1/completions", json=BODY)).status_code == 200
        async with served.client() as stranger:
            with pytest.raises(httpx.ConnectError):
                await stranger.get("/health")
        async with httpx.AsyncClient() as plain:
            with pytest.raises(httpx.HTTPError):
                await plain.get(served.url.replace("https", "http") + "/health")


async def test_clients_need_a_certificate_when_one_is_required(make_app, authority, certificate):
    options = certified(
        certificate, ssl_ca_certs=str(authority.certificate), ssl_cert_reqs=ssl.CERT_REQUIRED
    )
    async with listening(make_app, **options) as served:
        own = authority.issue("client")
        async with served.client(verify=authority.trusting(*own)) as client:
            assert (await client.get("/health")).status_code == 200
        async with served.client(verify=authority.trusting()) as client:
            with pytest.raises(httpx.HTTPError):
                await client.get("/health")


async def test_replaced_certificates_are_shown_to_new_connections_and_old_ones_live_on(
    make_app, authority
):
    files = authority.issue("renewed")
    trusting = authority.trusting()
    async with listening(make_app, **certified(files, enable_ssl_refresh=True)) as served:
        assert not served.tls.refresh()
        async with served.client(verify=trusting) as old:
            await old.get("/version")
            _, first = await served.connect(ssl=trusting)
            authority.issue("renewed")
            assert served.tls.refresh()
            _, second = await served.connect(ssl=trusting)
            assert serial_of(first) != serial_of(second)
            assert (await old.get("/version")).status_code == 200
            for writer in (first, second):
                writer.close()


async def test_a_key_replaced_before_its_certificate_changes_nothing(make_app, authority):
    files = authority.issue("half")
    async with listening(make_app, **certified(files)) as served:
        _, key = authority.issue("other")
        with open(key) as source, open(files[1], "w") as target:
            target.write(source.read())
        assert not served.tls.refresh()
        async with served.client(verify=authority.trusting()) as client:
            assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ssl_certfile": "/no/such.pem"}, "--ssl-certfile /no/such.pem: No such file"),
        ({"ssl_keyfile": "/key.pem"}, "--ssl-keyfile /key.pem: needs --ssl-certfile"),
        ({"enable_ssl_refresh": True}, "--enable-ssl-refresh"),
        ({"ssl_cert_reqs": 2}, "--ssl-cert-reqs 2"),
        ({"ssl_certfile": __file__}, "must be PEM files that belong together"),
    ],
)
def test_files_that_do_not_serve_are_named(options, said):
    with pytest.raises(ConfigError, match=said):
        tls_of(ServerOptions(max_log_len=None, **options))


def test_unknown_ciphers_and_a_missing_authority_are_named(certificate):
    for options, said in (
        ({"ssl_ciphers": "ROT13"}, "--ssl-ciphers ROT13"),
        ({"ssl_cert_reqs": 2}, "needs --ssl-ca-certs"),
        ({"ssl_ca_certs": certificate[1]}, "--ssl-ca-certs"),
    ):
        with pytest.raises(ConfigError, match=said):
            tls_of(ServerOptions(max_log_len=None, **certified(certificate, **options)))
