"""Secrets leave no text that passes through the one function, and nothing that a terminal obeys does."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmeta.errors import DataError
from distmeta.masking import masked, masked_tree, printable

SECRET = "S3cr3tValue"
CARRIERS = [
    "http://user:{}@host/data",
    "https://{}@host:8080/x?y=1",
    "postgresql+psycopg2://me:{}@db:5432/mlflow",
    "http://me:p/{}@host/x",
    "http://me:p@{}@host/x",
    "s3://KEY:{}@bucket/data",
    "http:/user:{}@host/a.png cannot be read",
    "https://host/shards?sig={}&se=2026",
    "https://host/s?X-Amz-Signature={}",
    "https://host/s?a=1&X-Amz-Credential={}&b=2",
    "https://host/s?AWSAccessKeyId={}",
    "https://host/s?access_token={}#x",
    "https://host/s?api_key={}",
    "mysql://host/db?user=me&password={}",
    "password={}",
    "AWS_SECRET_ACCESS_KEY={} aws s3 cp",
    "--set tracking.password={}",
    '{{"token": "{}"}}',
    "{{'password': '{}'}}",
    "pipe:curl -sf -u me:{} https://host/{{name}}",
    "pipe:curl --user 'me:{}' https://host/{{name}}",
    "pipe:curl -H 'Authorization: Bearer {}' https://host/{{name}}",
    "pipe:curl -H 'Authorization: Basic {}' https://host/{{name}}",
    'pipe:curl -H "X-Api-Key: {}" https://host/{{name}}',
    "pipe:curl -H 'PRIVATE-TOKEN: {}' https://host/{{name}}",
    "pipe:wget --http-password={} -O- https://host/{{name}}",
    "pipe:wget --http-password {} -O- https://host/{{name}}",
    "pipe:az storage blob download --sas-token '{}' -n {{name}}",
    "pipe:curl --oauth2-bearer {} https://host/{{name}}",
    "pipe:curl -b 'session={}' https://host/{{name}}",
    "pipe:s3cmd --secret_key={} get s3://b/{{name}} -",
    "pipe:tool --secret-key {} {{name}}",
    "pipe:gpg --batch --passphrase '{}' -d {{name}}",
    "pipe:sshpass -p {} ssh me@host cat {{name}}",
    "https://host/s?pass={}",
    "tracking:\n  password: {}\n",
    "{{user: me, db_password: {}}}",
    "HTTP 401 for url https://me:{}@host/manifest.json (5 attempts)",
]


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_secret_is_masked_wherever_it_stands(carrier: str) -> None:
    text = carrier.format(SECRET)
    assert SECRET not in masked(text)
    assert SECRET not in str(DataError(f"{text} cannot be read", f"look at {text}"))
    assert SECRET not in str(masked_tree({"a": [text], text: 1}))


@pytest.mark.parametrize(
    "secret",
    [
        "github_pat_11ABCDEFG0abcdefghijkl",
        "AIza" + "Sy0" * 11 + "ab",
        "dapi" + "0123456789abcdef" * 2,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.sflKxwRJSMeK",
    ],
)
def test_a_secret_that_is_known_by_its_looks_is_masked(secret: str) -> None:
    assert masked(f"cannot read {secret} there") == "cannot read *** there"


@given(st.sampled_from(CARRIERS), st.from_regex(r"[A-Za-z0-9._~%+-]{8,24}", fullmatch=True), st.text("abc =&? ", max_size=8))
def test_any_secret_is_masked_and_masking_twice_changes_nothing(carrier: str, secret: str, around: str) -> None:
    found = masked(around + " " + carrier.format(f"Zq{secret}"))
    assert f"Zq{secret}" not in found
    assert masked(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8080/a/b",
        "http://[::1]:5000/x",
        "s3://bucket/data/shards",
        "sqlite:////home/me/mlflow.db",
        "models:/omniglot-5way-1shot@champion",
        "data/my photos #1",
        "pipe:aws s3 cp s3://bucket/{name} -",
        "model.use_cls_token=true",
        "RAY_AUTH_TOKEN_PATH=/home/me/token",
        "outer.lr=0.001 in c.yaml: input should be greater than 0",
        "me@host.example",
        "mlflow server --host 127.0.0.1 --port 5000",
        "HTTP 401: the server says: unauthorized",
        "a forgotten token: set RAY_AUTH_TOKEN",
        "token: null",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


@given(st.text())
def test_what_is_printable_moves_no_cursor(text: str) -> None:
    assert not [c for c in printable(text) if unicodedata.category(c) in ("Cc", "Cs") or c in "\u202e\u2066\u2028"]
    assert printable("\x1b[2J\u202eé文🐶\udcff\n") == "\\x1b[2J\\u202eé文🐶\\udcff\\n"
