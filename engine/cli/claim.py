"""`opportune claim show | redeem | qr`: claim links of offers (scan to claim)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import httpx
import typer

from engine.cli.serve import service_url
from engine.clock import wall_ms
from engine.errors import OpportuneError
from engine.settings import load_settings

LinkArgument = Annotated[str, typer.Argument(help="the claim link of a message, or the token at its end")]

claim_app = typer.Typer(help="Claim links: is one genuine, redeem it, draw it as a QR code.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(claim_app, name="claim")


@claim_app.command("show")
def show(
    link: LinkArgument,
    state: Annotated[Path | None, typer.Option("--state", help="state folder; default from the settings")] = None,
) -> None:
    """Say whether this deployment signed a link, for which offer and until when. Exit status 1 where it did not."""
    from engine.claim_token import token_reader
    from engine.runtime.id_key import load_id_key

    path = load_settings(state=state).state / "offer-id.key"
    if not path.exists():
        raise OpportuneError(f"there is no {path}: name the state folder of the service by --state")
    claim = token_reader(load_id_key(path))(_token(link))
    if claim is None:
        print("not genuine: made elsewhere, or changed on its way")
        raise typer.Exit(1)
    until = datetime.fromtimestamp(claim.until_ms / 1000, UTC).isoformat(timespec="minutes")
    print(f"offer {claim.offer_id}, until {until}{', expired' if claim.until_ms <= wall_ms() else ''}")


@claim_app.command("redeem")
def redeem(
    link: LinkArgument,
    url: Annotated[str | None, typer.Option(help="of the running service; default from the settings")] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency-Key, so that it may be asked again")] = None,
) -> None:
    """Redeem a link at the running service, once. Exit status 1 where it is refused."""
    settings = load_settings()
    base = service_url(settings, url)
    headers = {} if key is None else {"idempotency-key": key}
    try:
        answer = httpx.post(f"{base}/v1/claims/{_token(link)}", headers=headers, timeout=10, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OpportuneError(
            f"no service answers at {base} ({type(error).__name__}); start it: opportune serve"
        ) from None
    print(json.dumps(answer.json(), ensure_ascii=False, indent=2))
    if not answer.is_success:
        raise typer.Exit(1)


@claim_app.command("qr")
def qr(
    link: LinkArgument,
    out: Annotated[Path, typer.Option("--out", help="file to write; .svg or .png")],
) -> None:
    """Draw a whole link as a QR code."""
    from engine.console.claims import QR_FORMATS, draw_qr

    kind = out.suffix.removeprefix(".").lower()
    if kind not in QR_FORMATS:
        raise typer.BadParameter(f"the file must end in .{' or .'.join(QR_FORMATS)}", param_hint="--out")
    if not link.startswith("https://"):
        raise typer.BadParameter("draw the whole link, https://...: a token alone leads nowhere")
    out.write_bytes(draw_qr(link, kind))
    print(f"written to {out}")


def _token(link: str) -> str:
    return link.rstrip("/").rpartition("/")[2]
