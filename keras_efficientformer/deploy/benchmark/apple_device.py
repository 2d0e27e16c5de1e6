"""Finds the iPhone or Mac to time Core ML on, and checks what that needs. Room: deploy/benchmark.

The phone is reached through coremltools' own `remote_device`, which builds, signs and installs an app, ModelRunner, and
talks to it with Xcode's `devicectl`. What `devicectl` lists, and coremltools leaves out, is read and checked here.
"""

import dataclasses
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_efficientformer.errors import DeviceError

# The keys are Swift's names of MLComputeUnits, the values coremltools'.
UNITS = {
    "all": "ALL",
    "cpuOnly": "CPU_ONLY",
    "cpuAndGPU": "CPU_AND_GPU",
    "cpuAndNeuralEngine": "CPU_AND_NE",
}
# Compute plans (MLComputePlan) need these; ModelRunner itself is content with iOS 17.0.
MINIMUM_MACOS = "14.4"
MINIMUM_IOS = "17.4"
# This is the first version with devicectl.
MINIMUM_XCODE = "15.0"
# The keys are the first numbers of Apple's product types: "iPhone13,2" is an iPhone 12.
CHIPS = {
    11: "Apple A12 Bionic",
    12: "Apple A13 Bionic",
    13: "Apple A14 Bionic",
    14: "Apple A15 Bionic",
    15: "Apple A16 Bionic",
    16: "Apple A17 Pro",
}


@dataclass(frozen=True)
class AppleDevice:
    """A device that Core ML runs on.

    Attributes:
        name: what Apple calls it, e.g. "iPhone 12", "MacBookPro18,3".
        os: system and version, e.g. "iOS 18.5", "macOS 15.1".
        soc: the chip, e.g. "Apple A14 Bionic"; None where it is not known.
        kind: "phone" or "computer".
        remote: coremltools' `Device` of a phone; None for this Mac.
    """

    name: str
    os: str
    soc: str | None
    kind: str
    remote: Any = None


def this_mac() -> AppleDevice:
    """The Mac that this runs on.

    Raises:
        DeviceError: it is no Mac, or its macOS is too old.
    """
    release = _check_mac()
    facts = [_printed("sysctl", "-n", name).strip() for name in ("hw.model", "machdep.cpu.brand_string")]
    return AppleDevice(name=facts[0], os=f"macOS {release}", soc=facts[1], kind="computer")


def connected_iphone(name: str | None = None) -> AppleDevice:
    """The iPhone that is connected to this Mac.

    Args:
        name: of the phone, as it calls itself, or its identifier or UDID; None takes the only one.

    Raises:
        DeviceError: this is no Mac or lacks Xcode; or no phone is connected, several are, or the one is not paired with
            this Mac, has no Developer Mode or too old an iOS.
    """
    _check_mac()
    _check_xcode()
    phone = _choose_iphone([phone for phone in _listed_devices() if phone.type == "iPhone"], name)
    _check_phone(phone)
    return AppleDevice(phone.model, f"iOS {phone.ios}", _chip(phone.product), "phone", _remote(phone.identifier))


async def start_model_runner(device: AppleDevice, team: str, folder: Path) -> AppleDevice:
    """Builds coremltools' ModelRunner app, installs it on the phone and starts it.

    Args:
        device: what `connected_iphone` returned.
        team: identifier of the development team that signs the app, ten letters and digits.
        folder: for the build and the transfers; it must exist as long as the device is used.

    Returns:
        The device with a session, whose `remote.session.stop()` ends it.

    Raises:
        DeviceError: the app could not be built, signed, installed or started.
    """
    import coremltools
    from coremltools.models.ml_program.experimental.remote_device import AppSigningCredentials

    # Identifiers belong to one team each, so coremltools' own can be had by nobody else.
    credentials = AppSigningCredentials(team, bundle_identifier=f"keras-efficientformer.modelrunner.{team.lower()}")
    try:
        remote = await device.remote.prepare_for_model_debugging(credentials, folder)
    except Exception as error:  # coremltools raises many kinds
        workspace = Path(coremltools.__file__).parent / "modelrunner" / "ModelRunner.xcworkspace"
        raise DeviceError(
            f"coremltools' ModelRunner app could not be built, signed for the team {team} or started on the "
            f"{device.name}: {reason_of(error)}. Unlock the phone, log in to the team under Xcode > Settings > "
            "Accounts, and trust it on the phone under Settings > General > VPN & Device Management. If that does not "
            f"help, build {workspace} for the phone in Xcode, which says what is wrong."
        ) from error
    return dataclasses.replace(device, remote=remote)


def reason_of(error: Exception) -> str:
    """What an error of coremltools says: it passes on devicectl's output as bytes, and xcodebuild's not at all."""
    message = getattr(error, "message", str(error))
    return message.decode(errors="replace").strip() if isinstance(message, bytes) else str(message or "Xcode failed")


def check_team(team: str | None) -> str:
    """The identifier of a development team, checked.

    Raises:
        DeviceError: it is None or not ten capital letters and digits; the message says where it stands.
    """
    if team is None or not re.fullmatch("[A-Z0-9]{10}", team):
        raise DeviceError(
            "The app that runs the models on the phone must be signed: pass --team with your team's identifier, ten "
            "capital letters and digits, e.g. A1B2C3D4E5. It stands at developer.apple.com/account under Membership "
            f"details, and of a free account in the certificate that Xcode makes. Received: {team}"
        )
    return team


def _check_mac() -> str:
    """The release of this Mac's macOS, checked."""
    release = platform.mac_ver()[0]
    if not release:
        raise DeviceError(
            f"Core ML runs on Apple's devices only: timing needs a Mac with macOS {MINIMUM_MACOS} or later, with an "
            f"iPhone connected or alone. This is {platform.system()}."
        )
    if _older(release, MINIMUM_MACOS):
        raise DeviceError(f"Timing Core ML needs macOS {MINIMUM_MACOS} or later. This Mac has macOS {release}.")
    return release


def _check_xcode() -> None:
    """Checks that there is the Xcode that coremltools wants, and its `devicectl` on the PATH, where it looks for it."""
    install = (
        f"Timing on an iPhone needs Xcode {MINIMUM_XCODE} or later: install it from the App Store, start it once, and "
        "choose it with `sudo xcode-select --switch /Applications/Xcode.app`."
    )
    try:
        version = _printed("xcodebuild", "-version").split()[1]
        devicectl = _printed("xcrun", "--find", "devicectl").strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise DeviceError(f"{install} Found none.") from error
    if _older(version, MINIMUM_XCODE):
        raise DeviceError(f"{install} Found Xcode {version}.")
    if shutil.which("devicectl") is None:
        os.environ["PATH"] += os.pathsep + str(Path(devicectl).parent)


@dataclass(frozen=True)
class _ListedDevice:
    """A device as devicectl lists it; what it does not know of one that it has never spoken to is empty."""

    identifier: str
    udid: str
    name: str
    type: str
    model: str
    product: str
    ios: str
    pairing: str
    connection: str
    developer_mode: str


def _listed_devices() -> list[_ListedDevice]:
    devices = []
    for entry in _devicectl("list", "devices")["devices"]:
        hardware, state, connection = (
            entry.get(f"{group}Properties", {}) for group in ("hardware", "device", "connection")
        )
        devices.append(
            _ListedDevice(
                identifier=entry["identifier"],
                udid=hardware.get("udid", ""),
                name=state.get("name", entry["identifier"]),
                type=hardware.get("deviceType", ""),
                model=hardware.get("marketingName", "iPhone"),
                product=hardware.get("productType", ""),
                ios=state.get("osVersionNumber", ""),
                pairing=connection.get("pairingState", ""),
                connection=connection.get("tunnelState", ""),
                developer_mode=state.get("developerModeStatus", ""),
            )
        )
    return devices


def _choose_iphone(phones: Sequence[_ListedDevice], name: str | None) -> _ListedDevice:
    known = ", ".join(phone.name for phone in phones) or "no iPhone"
    if name is not None:
        wanted = [phone for phone in phones if name in (phone.name, phone.identifier, phone.udid)]
        if len(wanted) != 1:
            raise DeviceError(f"{len(wanted) or 'No'} iPhones are called {name}. This Mac knows {known}.")
        return wanted[0]
    # Paired phones stay in the list when they are away.
    near = [phone for phone in phones if phone.connection != "unavailable"]
    if not near:
        raise DeviceError(
            "No iPhone is connected: plug one in and unlock it, or time on this Mac with --device mac. "
            f"This Mac knows {known}."
        )
    if len(near) > 1:
        names = ", ".join(phone.name for phone in near)
        raise DeviceError(f"{len(near)} iPhones are connected: {names}. Choose one with --device.")
    return near[0]


def _check_phone(phone: _ListedDevice) -> None:
    if phone.pairing != "paired":
        raise DeviceError(f"{phone.name} does not trust this Mac: unlock it, plug it in again and tap Trust.")
    if _older(phone.ios, MINIMUM_IOS):
        raise DeviceError(f"Timing on an iPhone needs iOS {MINIMUM_IOS} or later. {phone.name} has iOS {phone.ios}.")
    if phone.developer_mode != "enabled":
        raise DeviceError(
            f"{phone.name} is not in Developer Mode: switch it on under Settings > Privacy & Security > Developer "
            "Mode. The entry is there once the phone has been seen in Xcode."
        )
    # A phone at rest is listed as "disconnected": asking for its details opens the connection, or shows it is gone.
    try:
        _devicectl("device", "info", "details", "--device", phone.identifier)
    except DeviceError as error:
        raise DeviceError(f"{phone.name} cannot be reached: unlock it and plug it in. {error}") from error


def _remote(identifier: str) -> Any:
    """coremltools' `Device` of a phone that `_check_phone` has just reached."""
    from coremltools.models.ml_program.experimental.remote_device import Device, DeviceState

    device = next(device for device in Device.get_devices() if device.identifier == identifier)
    # coremltools refuses the "disconnected" of a phone at rest, though each of its commands connects for itself.
    return dataclasses.replace(device, state=DeviceState.CONNECTED)


def _devicectl(*arguments: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        # Its JSON is made for programs, and its tables are not.
        answer = Path(folder) / "answer.json"
        try:
            _printed("xcrun", "devicectl", *arguments, "--json-output", str(answer))
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip() or f"exit code {error.returncode}"
            raise DeviceError(f"`devicectl {' '.join(arguments)}` failed: {reason}") from error
        return json.loads(answer.read_text())["result"]


def _printed(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


def _chip(product_type: str) -> str | None:
    generation = re.match(r"iPhone(\d+),", product_type)
    return CHIPS.get(int(generation[1])) if generation else None


def _older(version: str, minimum: str) -> bool:
    found, needed = ([int(part) for part in f"{text}.0".split(".")[:2]] for text in (version, minimum))
    return found < needed
