"""How gateways are declared: `[gateways.NAME]` in opportune.toml, one model a kind (docs/gateways.md).

Secrets come from a file (`password_file`), the environment (`OPPORTUNE_GATEWAYS__NAME__PASSWORD`) or, for trials, the
table itself. A wrong or unknown field is an error at the start that names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from engine.definitions import BenefitClass
from engine.errors import SettingsError

PositiveSeconds = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,29}$")]
Port = Annotated[int, Field(gt=0, le=65535)]
Province = Annotated[str, StringConstraints(pattern=r"^[^/\s]{1,40}$")]
Words = Annotated[str, StringConstraints(pattern=r"^[^【】\r\n]*$")]


class GatewayBase(BaseModel):
    """What every gateway may say of itself (rule G4), and which offers of its channel it takes."""

    model_config = ConfigDict(extra="forbid")

    channel: Name | None = Field(None, description="what it serves; default: its name")
    window: Annotated[int, Field(gt=0, le=1000)] = Field(default=32, description="submits without an answer")
    messages_per_s: Annotated[float, Field(gt=0)] = Field(1000, description="segments, where a text has several")
    daily_quota: Annotated[int, Field(gt=0)] | None = Field(
        None, description="segments a calendar day in the deployment's zone"
    )
    signature: Annotated[Words, Field(max_length=20)] | None = Field(
        None, description='of an SMS, filed for this sender; none: the policy\'s, "": the gateway adds its own'
    )
    opt_out_text: Annotated[Words, Field(max_length=30)] | None = Field(
        None, description='of an SMS; none: the policy\'s, "": the gateway adds its own'
    )
    signature_at_end: bool = Field(False, description="where the gateway wants the signature of an SMS")
    provinces: tuple[Province, ...] = Field((), description="of the users it is for; none: all")
    benefit_classes: tuple[BenefitClass, ...] = Field((), description="of the benefits it is for; none: all")
    weight: Annotated[float, Field(ge=0, le=1000)] = Field(
        1, description="its share among gateways alike; 0: a stand-in for when none of them can take an offer"
    )


class SandboxSettings(GatewayBase):
    """Accepts everything, sends nothing."""

    kind: Literal["sandbox"] = "sandbox"
    window: Annotated[int, Field(gt=0, le=1000)] = 256
    messages_per_s: Annotated[float, Field(gt=0)] = 20_000


class WebhookSettings(GatewayBase):
    """A signed POST per offer (Standard Webhooks)."""

    kind: Literal["webhook"]
    url: str | None = None
    secret: str | None = Field(
        default=None, repr=False, description="of Standard Webhooks, whsec_...; better in a file"
    )
    secret_file: Path | None = None
    timeout_s: PositiveSeconds = 10
    allow_http: bool = False
    allow_networks: tuple[str, ...] = Field(
        default=(), description="networks to connect to although they are not public"
    )


class HttpSettings(GatewayBase):
    """What gateways behind an HTTP API have in common."""

    timeout_s: PositiveSeconds = 10
    allow_http: bool = Field(False, description="plain http, for a gateway on our own network")
    allow_networks: tuple[str, ...] = Field(
        default=(), description="networks to connect to although they are not public"
    )
    callback_url: str | None = Field(
        None,
        description="where the gateway reaches this service, such as https://offers.example.com; none: no receipts",
    )


class KannelSettings(HttpSettings):
    """Kannel's sendsms, with DLR and inbound messages by callback."""

    kind: Literal["kannel"]
    url: str = Field(description="such as http://10.0.0.7:13013/cgi-bin/sendsms")
    login: Annotated[str, Field(min_length=1, max_length=64)]
    password: str | None = Field(None, repr=False, description="better in password_file")
    password_file: Path | None = None
    sender: str = Field("", max_length=21, description="number or name messages come from")
    smsc: str = Field("", max_length=64, description="which of Kannel's connections; none: Kannel chooses")
    callback_secret: str | None = Field(None, repr=False, description="what callbacks must carry; better in a file")
    callback_secret_file: Path | None = None
    allow_from: tuple[str, ...] = Field((), description="networks Kannel calls back from; none: any with the secret")


class TwilioSettings(HttpSettings):
    """Twilio, or whoever offers its Messages API."""

    kind: Literal["twilio"]
    url: str = "https://api.twilio.com"
    account: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,64}$")] = Field(description="Account SID")
    password: str | None = Field(None, repr=False, description="Auth Token; better in password_file")
    password_file: Path | None = None
    sender: str = Field("", description="E.164 number or sender name")
    messaging_service: str = Field("", description="Messaging Service SID, instead of sender")
    messages_per_s: Annotated[float, Field(gt=0)] = 1


class FcmSettings(HttpSettings):
    """Firebase Cloud Messaging, HTTP v1."""

    kind: Literal["fcm"]
    account_file: Path = Field(description="the service account's JSON key file")
    url: str = "https://fcm.googleapis.com"
    messages_per_s: Annotated[float, Field(gt=0)] = 200
    title: str = Field("", max_length=60, description="of notifications whose offer has none")


class WebPushSettings(HttpSettings):
    """Web Push (RFC 8030, 8291, 8292), UnifiedPush included; the address is the browser's subscription as JSON."""

    kind: Literal["webpush"]
    key_file: Path = Field(description="VAPID private key, PEM")
    subject: Annotated[str, Field(pattern=r"^(mailto:|https://)")] = Field(
        description="whom push services may write to"
    )
    title: str = Field("", max_length=60, description="of notifications whose offer has none")


class AppriseSettings(GatewayBase):
    """Anything Apprise speaks; no receipts, no proof of refusal."""

    kind: Literal["apprise"]
    url: str | None = Field(None, repr=False, description="Apprise URL with {to} for the address")
    url_file: Path | None = None
    title: str = Field("", max_length=60, description="of notifications whose offer has none")
    timeout_s: PositiveSeconds = 20


class OperatorSettings(GatewayBase):
    """What SGIP, CMPP and SMGP have in common: one login, connections, a sending number."""

    host: str
    login: Annotated[str, Field(min_length=1, max_length=16)]
    password: str | None = Field(None, repr=False, description="better in password_file")
    password_file: Path | None = None
    sender: Annotated[str, Field(pattern=r"^[0-9]{1,20}$")] = Field(description="the access number, such as 10655...")
    connections: Annotated[int, Field(gt=0, le=16)] = 1
    messages_per_s: Annotated[float, Field(gt=0)] = Field(100, description="segments, over all connections")
    answer_timeout_s: PositiveSeconds = Field(30, description="until a submit without an answer is unknown")
    keep_alive_s: PositiveSeconds = Field(60, description="idle time after which the link is tested")
    keep_alive_tries: Annotated[int, Field(gt=0)] = Field(3, description="unanswered tests until the link is dead")
    service: Annotated[str, Field(max_length=10)] = Field("", description="business code agreed with the operator")


class SgipSettings(OperatorSettings):
    """China Unicom, SGIP 1.2: we connect to send and listen for receipts and users' messages."""

    kind: Literal["sgip"]
    port: Port = 8801
    node: Annotated[int, Field(ge=0, le=0xFFFFFFFF)] = Field(description="our node id, 3AAAAQQQQQ")
    corporation: Annotated[str, Field(pattern=r"^[0-9]{1,5}$")] = Field(description="CorpId, the last five of the node")
    listen_host: str = "0.0.0.0"
    listen_port: Annotated[int, Field(ge=0, le=65535)] = Field(8801, description="where the operator connects to us")
    listen_login: str = Field("", max_length=16, description="what the operator logs in with; default: login")
    listen_password: str | None = Field(None, repr=False, description="default: password")
    listen_password_file: Path | None = None
    allow_from: tuple[str, ...] = Field((), description="networks the operator connects from; none: any")
    idle_s: PositiveSeconds = Field(50, description="we leave an idle connection after this; gateways do after 60")
    charged: Annotated[str, Field(pattern=r"^[0-9]{0,21}$")] = Field("0" * 21, description="21 zeros: we pay")
    window: Annotated[int, Field(gt=0, le=1000)] = Field(32, description="unanswered submits a connection")


class CmppSettings(OperatorSettings):
    """China Mobile, CMPP 2.0 and 3.0."""

    kind: Literal["cmpp"]
    port: Port = 7890
    login: Annotated[str, Field(min_length=1, max_length=6)]
    version: Literal["2.0", "3.0"] = "3.0"
    window: Annotated[int, Field(gt=0, le=1000)] = Field(16, description="unanswered submits a connection")
    keep_alive_s: PositiveSeconds = 180


class SmppSettings(OperatorSettings):
    """SMPP 3.4 as a transceiver."""

    kind: Literal["smpp"]
    port: Port = 2775
    login: Annotated[str, Field(min_length=1, max_length=15)] = Field(description="system_id")
    sender: Annotated[str, Field(min_length=1, max_length=20)] = Field(description="number, or name of letters")
    service: Annotated[str, Field(max_length=5)] = Field("", description="service_type")
    system_type: Annotated[str, Field(max_length=12)] = ""
    sender_ton: Annotated[int, Field(ge=0, le=6)] = 0
    sender_npi: Annotated[int, Field(ge=0, le=18)] = 0
    number_ton: Annotated[int, Field(ge=0, le=6)] = 1
    number_npi: Annotated[int, Field(ge=0, le=18)] = 1
    ids: Literal["same", "hex_answer", "hex_receipt"] = Field(
        "same", description="where message ids are hexadecimal in the answer or the receipt only"
    )


class SmgpSettings(OperatorSettings):
    """China Telecom, SMGP 3.0.3."""

    kind: Literal["smgp"]
    port: Port = 8890
    login: Annotated[str, Field(min_length=1, max_length=8)]
    window: Annotated[int, Field(gt=0, le=1000)] = Field(16, description="unanswered submits a connection")
    keep_alive_s: PositiveSeconds = 180


GatewaySettings = Annotated[
    SandboxSettings
    | WebhookSettings
    | SgipSettings
    | CmppSettings
    | SmgpSettings
    | SmppSettings
    | KannelSettings
    | TwilioSettings
    | FcmSettings
    | WebPushSettings
    | AppriseSettings,
    Field(discriminator="kind"),
]


def read_secret(value: str | None, file: Path | None, where: str) -> str | None:
    """Return a secret given in place or by file; None where neither is given. Raises SettingsError."""
    if file is None:
        return value
    if value is not None:
        raise SettingsError(f"{where}: give the secret or its file, not both")
    try:
        return file.read_text().strip()
    except OSError as error:
        raise SettingsError(f"{where} {file} cannot be read: {error.strerror}") from None
