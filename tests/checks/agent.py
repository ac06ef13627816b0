"""At the agent: what is verified, and who notices when it is not."""

from tests.checks.mutants import Check

CHECKS = (
    Check(
        "the grant is asked before ACCEPT",
        "reverse.py",
        ("            self._grants.admit(received.device, now)\n\n"),
        ("            pass\n\n"),
        "Whoever knows the device's ID gets a tunnel.",
        (("tests/test_reverse.py::test_a_tunnel_that_asks_for_nothing_yet_is_refused_to_a_client_without_a_grant[asyncio]"),),
    ),
    Check(
        "an invite is redeemed",
        "reverse.py",
        "grant = await to_thread.run_sync(redeem)",
        'grant = Grant(received.device, "", ("*",), 0)',
        "Any eight bytes are an invite.",
        ("tests/test_agent.py::test_its_first_word_has_an_invite_only_while_nobody_is_paired[asyncio]",),
    ),
    Check(
        "the grant is asked at every UDP tunnel",
        "reverse.py",
        ("            self._admitted(tunnel, device)\n        except Failure"),
        ("            pass\n        except Failure"),
        "A revoked guest opens UDP on a standby.",
        ("tests/test_reverseflows.py::test_a_client_without_a_grant_gets_no_flows[asyncio]",),
    ),
    Check(
        "the grant is asked at every CONNECT",
        "reverse.py",
        ("            grant = self._grants.admit(device, int(time.time()))\n        if"),
        (
            '            grant = self.__dict__.setdefault("g", {}).get(device) or '
            'self.__dict__["g"].setdefault(device, self._grants.admit(device, int(time.time())))\n'
            "        if"
        ),
        "A tunnel that is used again keeps what its first use was granted.",
        ("tests/test_reverse.py::test_what_a_client_may_reach_is_asked_anew_at_every_request[asyncio]",),
    ),
    Check(
        "the grant is asked at every flow",
        "reverse.py",
        ("            grant = self._grants.admit(device, int(time.time()))\n        if"),
        (
            '            grant = self.__dict__.setdefault("g", {}).get(device) or '
            'self.__dict__["g"].setdefault(device, self._grants.admit(device, int(time.time())))\n'
            "        if"
        ),
        "A tunnel of flows keeps what its first flow was granted.",
        ("tests/test_reverseflows.py::test_a_grant_is_asked_for_at_every_flow[asyncio]",),
    ),
    Check(
        "the policy is asked about addresses",
        "reverse.py",
        "return allowed_addresses(grant.targets, target.host, target.port, addresses, around)",
        "return addresses",
        "A guest reaches everything.",
        ("tests/test_reverseflows.py::test_a_grant_is_asked_for_at_every_flow[asyncio]",),
    ),
    Check(
        "the policy is asked about unix sockets",
        "reverse.py",
        "allowed_unix(self._admitted(tunnel, device).targets, target.host)",
        "self._admitted(tunnel, device)",
        "Every guest is root, by Docker's socket.",
        ("tests/test_reverse.py::test_a_unix_socket_that_no_grant_names_is_refused[asyncio]",),
    ),
    Check(
        "the grant is asked at every unix socket",
        "reverse.py",
        "allowed_unix(self._admitted(tunnel, device).targets, target.host)",
        'allowed_unix((f"unix:{target.host}",), target.host)',
        "A revoked guest goes on to the sockets of a tunnel that it has.",
        ("tests/test_reverse.py::test_a_unix_socket_that_no_grant_names_is_refused[asyncio]",),
    ),
    Check(
        "revoke cuts live tunnels",
        "reverse.py",
        ("        for tunnel in tunnels:\n            tunnel.reset(Reason.POLICY_REVOKED)"),
        ("        for tunnel in tunnels:\n            pass"),
        "A revoked guest stays for as long as it stays connected.",
        (("tests/test_reverseflows.py::test_a_revoke_cuts_tunnels_with_flows_and_those_without_and_counts_the_former[asyncio]"),),
    ),
    Check(
        "the book is watched while tunnels live",
        "reverse.py",
        "                    self.cut(device)",
        "                    pass",
        "A grant that ends, or is struck out by another process, leaves its tunnels open.",
        ("tests/test_reverse.py::test_a_damaged_book_lets_nobody_in_and_keeps_nobody[asyncio]",),
    ),
    Check(
        "an expiry cuts what it opened",
        "reverse.py",
        "if now >= expires:",
        "if False:",
        "A connection outlives the grant that it was opened under, because the device has another.",
        ("tests/test_reverseflows.py::test_a_grant_that_ends_cuts_its_flows[asyncio]",),
    ),
    Check(
        "the first of several expiries counts",
        "reverse.py",
        "min(grant.expires, self._expiries.get(tunnel, grant.expires))",
        "grant.expires",
        "A flow outlives the grant that it was opened under.",
        (("tests/test_reverseflows.py::test_the_first_end_of_all_grants_that_a_tunnels_flows_were_opened_under_counts[asyncio]"),),
    ),
    Check(
        "tunnels of one client",
        "reverse.py",
        ">= MAX_PER_CLIENT:",
        ">= 1 << 60:",
        "One client takes all of the agent's descriptors.",
        ("tests/test_reverse.py::test_one_client_cannot_take_everything[asyncio]",),
    ),
    Check(
        "silent connections of one client",
        "reverse.py",
        "if self._arriving[client] >= MAX_ARRIVING:",
        "if False:",
        "One client, or the relay in its name, takes all of the agent's descriptors.",
        ("tests/test_reverse.py::test_connections_that_show_nothing_are_bounded_for_each_client[asyncio]",),
    ),
    Check(
        "a wrong identity is an alarm",
        "reverse.py",
        "self._alarm(str(mismatch))",
        "pass",
        "An attack by the relay goes unseen.",
        ("tests/test_reverse.py::test_alarms_that_a_client_can_cause_at_will_are_told_once_a_second[asyncio]",),
    ),
    Check(
        "a book that cannot be read grants nothing",
        "reverse.py",
        "except (Failure, StateError):  # a book that cannot be read grants nothing",
        "except Failure:",
        "Live tunnels go on while nobody can say whether they may.",
        ("tests/test_reverse.py::test_a_damaged_book_lets_nobody_in_and_keeps_nobody[asyncio]",),
    ),
    Check(
        "flows of one client",
        "reverseflows.py",
        "if sum(map(len, self.tunnels)) > MAX_FLOWS_PER_CLIENT:",
        "if False:",
        "One client takes all of the agent's descriptors, with many tunnels.",
        ("tests/test_reverseflows.py::test_ten_thousand_flows_of_one_client_are_bounded_and_told[asyncio]",),
    ),
    Check(
        "names that one client looks up",
        "reverseflows.py",
        "if by_name and len(self.looking_up) >= MAX_LOOKUPS_PER_CLIENT:",
        "if False:",
        "Names that never resolve take every lookup of the agent.",
        ("tests/test_reverseflows.py::test_names_that_never_resolve_hold_up_nobody_and_are_bounded[asyncio]",),
    ),
    Check(
        "the policy is asked at every flow",
        "reverseflows.py",
        "                rule = self._permit(target)",
        "                rule = Rule(list, object)",
        "UDP reaches everything.",
        (("tests/test_reverseflows.py::test_what_no_general_grant_opens_is_closed_to_datagrams_too[asyncio-255.255.255.255]"),),
    ),
    Check(
        "only allowed addresses are dialled (TCP)",
        "dial.py",
        (
            "        addresses = allow(await resolve(target.host, target.port, speaker=speaker))\n"
            "        if not addresses:\n"
            "            raise Failure(Reason.POLICY_DENIED, speaker)\n"
            "        return await"
        ),
        ("        addresses = await resolve(target.host, target.port, speaker=speaker)\n        return await"),
        "A name that resolves to a forbidden address reaches it.",
        ("tests/test_ssrf.py::test_of_several_addresses_only_the_allowed_ones_are_dialled[asyncio]",),
    ),
    Check(
        "only allowed addresses are dialled (UDP)",
        "dial.py",
        (
            "        addresses = allow(await resolve(target.host, target.port, speaker=speaker))\n"
            "        if not addresses:\n"
            "            raise Failure(Reason.POLICY_DENIED, speaker)\n"
            "        return connect"
        ),
        ("        addresses = await resolve(target.host, target.port, speaker=speaker)\n        return connect"),
        "A name that resolves to a forbidden address reaches it.",
        (("tests/test_dial.py::TestDatagrams::test_no_address_left_is_denied_and_no_answer_of_the_resolver_a_timeout[asyncio]"),),
    ),
    Check(
        "what was checked is what is dialled",
        "dial.py",
        "return await _Race(addresses, target.port, allow).run(speaker)",
        ("return await _Race(await resolve(target.host, target.port, speaker=speaker), target.port, list).run(speaker)"),
        "A name that resolves differently the second time reaches a forbidden address.",
        ("tests/test_ssrf.py::test_a_name_is_looked_up_once_and_what_was_checked_is_what_is_dialled[asyncio]",),
    ),
    Check(
        "no service at port 0",
        "dial.py",
        "if not target.port:",
        "if False:",
        "Datagrams go to a port that stands for none.",
        ("tests/test_dial.py::TestDatagrams::test_port_0_is_no_service[asyncio]",),
    ),
    Check(
        "a socket is not connected with itself",
        "dial.py",
        "if sock.getsockname() == sock.getpeername():",
        "if False:",
        "A closed port answers with what was sent to it.",
        ("tests/test_dial.py::TestConnecting::test_a_connection_with_itself_is_a_refusal[asyncio]",),
    ),
    Check(
        "strangers' datagrams are dropped",
        "dial.py",
        "        _drop_strangers(sock)\n",
        "",
        "Somebody who guesses the port speaks in the target's name.",
        ("tests/test_dial.py::TestDatagrams::test_nor_in_the_moment_between_binding_and_connecting[asyncio]",),
    ),
    Check(
        "lookups in all",
        "dial.py",
        "if not running.acquire(blocking=False):",
        "if not (running.acquire(blocking=False) or True):",
        "Names that never resolve take every thread.",
        ("tests/test_dial.py::TestResolving::test_lookups_that_hang_are_bounded_in_number[asyncio]",),
    ),
    Check(
        "an address is dialled by its number",
        "dial.py",
        "return str(IPv6Address(int(address))), port, 0, _zone_number(address.scope_id)",
        "return str(address), port, 0, 0",
        "An address with a zone is looked up as a name again.",
        ("tests/test_dial.py::TestConnecting::test_a_zone_of_this_machine_goes_as_its_number[asyncio]",),
    ),
    Check(
        "a flow ends when it is idle",
        "targetflow.py",
        "while self._failed is None and anyio.current_time() < self._active + idle:",
        "while self._failed is None:",
        "Flows that nobody uses keep their sockets.",
        ("tests/test_targetflow.py::test_a_flow_to_a_name_server_ends_sooner[asyncio]",),
    ),
    Check(
        "datagrams that wait for a socket",
        "targetflow.py",
        "if len(self._held) >= MAX_HELD or self._held_bytes + len(payload) > MAX_HELD_BYTES:",
        "if False:",
        "A client fills the memory while a name is looked up.",
        ("tests/test_targetflow.py::test_the_bytes_that_are_held_are_bounded_and_the_largest_datagram_fits[asyncio]",),
    ),
    Check(
        "tuunel's own ports are known",
        "agent.py",
        "listeners=known_listeners(self._home)",
        "listeners=()",
        "A guest enters the machine's own proxy.",
        (("tests/test_proxy.py::test_a_guest_of_the_agent_cannot_enter_a_udp_association_of_the_proxy_beside_it[asyncio]"),),
    ),
    Check(
        "the relay's address is known",
        "agent.py",
        "relay=tuple(self._relay_endpoints)",
        "relay=()",
        "A guest reaches the relay through the agent.",
        ("tests/test_agent.py::test_the_relay_is_no_target_by_any_of_its_names[asyncio]",),
    ),
    Check(
        "an attack is an alarm",
        "pool.py",
        "if failure.reason in _ALARMS:",
        "if False:",
        "An attack by the relay goes unseen.",
        ("tests/test_pool.py::test_a_wrong_peer_is_an_alarm_and_is_never_tried_again[asyncio]",),
    ),
    Check(
        "an attempt with app bytes is not repeated",
        "pool.py",
        "spent = early and standby is None",
        "spent = False",
        "The relay makes an order be placed twice.",
        ("tests/test_pool.py::test_an_attempt_that_carried_early_bytes_is_not_repeated[asyncio]",),
    ),
)
