"""The proxy auto-configuration file: which hosts a browser sends through this proxy.

Source: docs/spec/front-doors.md section 9.
"""

import json
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from string import Template
from typing import Final

from tuunel.address import HostPort

MEDIA_TYPE: Final = "application/x-ns-proxy-autoconfig"

# ECMAScript 3: some systems still run these files in engines of that age. Networks match literal addresses only: isInNet()
# would look names up, and tell a resolver what the person is about to visit.
_SCRIPT: Final = Template("""\
var proxy = $proxy;
var hosts = $hosts;
var networks = $networks;

function binary(number, width) {
  var bits = number.toString(2);
  while (bits.length < width) bits = "0" + bits;
  return bits;
}

function addressBits(host) {
  var bits = "", i;
  if (/^\\d{1,3}(\\.\\d{1,3}){3}$$/.test(host)) {
    var bytes = host.split(".");
    for (i = 0; i < 4; i++) bits += binary(parseInt(bytes[i], 10), 8);
    return bits;
  }
  if (!/^[0-9a-f:]+$$/.test(host) || host.indexOf(":") < 0) return "";
  var halves = host.split("::");
  var head = halves[0] ? halves[0].split(":") : [];
  var tail = halves.length > 1 && halves[1] ? halves[1].split(":") : [];
  while (halves.length > 1 && head.length + tail.length < 8) head.push("0");
  var groups = head.concat(tail);
  for (i = 0; i < groups.length; i++) bits += binary(parseInt(groups[i], 16), 16);
  return bits;
}

function FindProxyForURL(url, host) {
  var i, bits;
  host = host.toLowerCase().replace(/\\.$$/, "").replace(/^\\[|\\]$$/g, "");
  for (i = 0; i < hosts.length; i++) {
    if (hosts[i].charAt(0) === "." ? host.slice(-hosts[i].length) === hosts[i] : host === hosts[i]) return proxy;
  }
  bits = addressBits(host);
  for (i = 0; i < networks.length; i++) {
    if (bits.length === networks[i][0] && bits.indexOf(networks[i][1]) === 0) return proxy;
  }
  return "DIRECT";
}
""")


def write_pac(proxy: HostPort, patterns: Sequence[str], networks: Sequence[IPv4Network | IPv6Network]) -> str:
    """Write the file for a SOCKS5 proxy at `proxy`: `.tuunel`, the host `patterns` (`host` or `*.suffix`) and the `networks` go to it.

    Everything else goes DIRECT. The script looks no name up.
    """
    hosts = [".tuunel", *(pattern.lower().removeprefix("*") for pattern in patterns)]
    prefixes = [
        [network.max_prefixlen, f"{int(network.network_address):0{network.max_prefixlen}b}"[: network.prefixlen]] for network in networks
    ]
    return _SCRIPT.substitute(proxy=json.dumps(f"SOCKS5 {proxy}"), hosts=json.dumps(hosts), networks=json.dumps(prefixes))
