"""Firebase Cloud Messaging, HTTP v1: one POST per message, authorised by a service account; the address is the token.

200                                            taken                        Submitted, by message name
404 UNREGISTERED, 403 SENDER_ID_MISMATCH       the token leads nowhere      GatewayGone: the address is dropped
429 QUOTA_EXCEEDED                             not taken                    GatewayThrottled, with Retry-After
503 UNAVAILABLE, 401 (token expired)           documented: not taken        GatewayRetryable
other 4xx                                      refused                      GatewayPermanent
500, timeout or cut after the request began    nobody knows                 GatewayUnknown, never resent
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import orjson

from engine.deliver.contract import Capabilities, Dispatch, Sessionless, Submitted
from engine.deliver.http_exchange import Answer
from engine.deliver.outbound import Outbound, retry_after_s
from engine.errors import (
    GatewayGone,
    GatewayPermanent,
    GatewayRetryable,
    GatewayThrottled,
    GatewayUnknown,
    SettingsError,
)

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
MOST_BYTES = 4096
"""Of notification and data together, as FCM counts."""
_LONGEST_TTL_S = 2_419_200
_TOKEN_LASTS_S = 3600
_RENEW_BEFORE_S = 300


class FcmGateway(Sessionless):
    """POST each dispatch as a notification to one registration token.

    account  the service account's key file: project_id, client_email, private_key, token_uri
    title    of notifications whose offer has none
    """

    def __init__(
        self,
        name: str,
        channel: str,
        out: Outbound,
        account: Path,
        *,
        now_ms: Callable[[], int],
        url: str = "https://fcm.googleapis.com",
        title: str = "",
        capabilities: Capabilities | None = None,
    ) -> None:
        self.name = name
        self.channel = channel
        self.capabilities = capabilities or Capabilities(messages_per_s=200)
        self._title = title
        self._now_ms = now_ms
        self._account = _read_account(name, account)
        self._out = out
        self._url = self._out.target(f"{url.rstrip('/')}/v1/projects/{self._account['project_id']}/messages:send")
        self._token_url = self._out.target(self._account["token_uri"])
        self._token, self._token_until_ms = "", 0
        self._renewing = asyncio.Lock()

    async def submit(self, dispatch: Dispatch) -> Submitted:
        body = orjson.dumps({"message": self._message(dispatch)})
        headers = {"authorization": f"Bearer {await self._access_token()}", "content-type": "application/json"}
        answer = await self._out.post(self._url, content=body, headers=headers, why_not_now=dispatch.why_not_now)
        return self._judge(answer)

    async def close(self, timeout_s: float = 5.0) -> None:
        await self._out.close()

    # --- the message ------------------------------------------------------------------------------------------------

    def _message(self, dispatch: Dispatch) -> dict[str, Any]:
        left_s = max(0, min((dispatch.deadline_ms - self._now_ms()) // 1000, _LONGEST_TTL_S))
        notification = {"title": dispatch.title or self._title, "body": dispatch.text}
        # Values of `data` are texts in FCM; the dispatch id lets the app report that it was opened.
        data = {name: str(value) for name, value in dispatch.data.items() if value is not None}
        data["dispatch_id"] = dispatch.dispatch_id
        if len(orjson.dumps([notification, data])) > MOST_BYTES:
            raise GatewayPermanent("too_long")
        return {
            "token": dispatch.address,
            "notification": {key: value for key, value in notification.items() if value},
            "data": data,
            "android": {"ttl": f"{left_s}s", "collapse_key": dispatch.offer_id},
            "apns": {"headers": {"apns-expiration": str(dispatch.deadline_ms // 1000)}},
        }

    # --- authorisation ----------------------------------------------------------------------------------------------

    async def _access_token(self) -> str:
        """Return a token that lasts for some minutes more; one request at a time asks for a new one."""
        async with self._renewing:
            if self._now_ms() >= self._token_until_ms - _RENEW_BEFORE_S * 1000:
                await self._renew()
            return self._token

    async def _renew(self) -> None:
        """Exchange a signed assertion for an access token (RFC 7523). Whatever fails here, no message was sent."""
        issued_s = self._now_ms() // 1000
        assertion = jwt.encode(
            {
                "iss": self._account["client_email"],
                "scope": SCOPE,
                "aud": self._account["token_uri"],
                "iat": issued_s,
                "exp": issued_s + _TOKEN_LASTS_S,
            },
            self._account["private_key"],
            algorithm="RS256",
        )
        form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion}
        try:
            answer = await self._out.post(self._token_url, form=form)
        except GatewayUnknown as error:
            raise GatewayRetryable(f"{self.name}: no access token ({error})") from None
        granted = _document(answer)
        if not answer.is_success or not isinstance(granted.get("access_token"), str):
            raise GatewayRetryable(f"{self.name}: no access token (answered {answer.status_code})")
        lasts_s = granted.get("expires_in")
        self._token = granted["access_token"]
        self._token_until_ms = (issued_s + (lasts_s if isinstance(lasts_s, int) else _TOKEN_LASTS_S)) * 1000

    # --- the answer -------------------------------------------------------------------------------------------------

    def _judge(self, answer: Answer) -> Submitted:
        status = answer.status_code
        if answer.is_success:
            named = _document(answer).get("name")
            return Submitted((str(named)[:128],))
        code = _error_code(answer)
        if code in ("UNREGISTERED", "SENDER_ID_MISMATCH"):
            raise GatewayGone(code.lower())
        if status == 429:
            raise GatewayThrottled(
                f"{self.name}: answered 429", retry_after_s(answer.headers.get("retry-after"), self._now_ms())
            )
        if status == 401:
            self._token_until_ms = 0
        if status in (401, 503):
            wait_s = retry_after_s(answer.headers.get("retry-after"), self._now_ms())
            raise GatewayRetryable(f"{self.name}: answered {status}", wait_s)
        if status < 500:
            raise GatewayPermanent(f"http_{status}_{code.lower()}".rstrip("_")[:64])
        raise GatewayUnknown(f"{self.name}: answered {status}")


def _read_account(name: str, path: Path) -> dict[str, str]:
    try:
        account = orjson.loads(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"gateways.{name}.account_file {path} cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError:
        raise SettingsError(f"gateways.{name}.account_file {path} is not JSON") from None
    needed = ("project_id", "client_email", "private_key", "token_uri")
    missing = [key for key in needed if not isinstance(account, dict) or not isinstance(account.get(key), str)]
    if missing:
        raise SettingsError(f"gateways.{name}.account_file {path} has no {', '.join(missing)}")
    return {key: account[key] for key in needed}


def _document(answer: Answer) -> dict[str, Any]:
    try:
        document = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _error_code(answer: Answer) -> str:
    """Return FCM's own code where the answer has one, else the general status."""
    error = _document(answer).get("error")
    if not isinstance(error, dict):
        return ""
    for detail in error.get("details") or ():
        if isinstance(detail, dict) and isinstance(detail.get("errorCode"), str):
            return str(detail["errorCode"])
    return str(error.get("status", ""))
