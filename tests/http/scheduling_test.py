# SPDX-License-Identifier: Apache-2.0
"""Fair service between tenants, as their clients see it: who ends first when one of them floods the server."""
import threading
import unittest

from harness import Directory, PATIENCE, ServerTest, wait_for

FLOOD, LONG, SHORT = 24, 400, 60  # requests that one tenant sends at once; tokens of its answers, and of the other's


def ended(server, count: int) -> list | None:
    """The log's entries of completions, once there are that many."""
    entries = [entry for entry in server.events("request") if entry["route"] == "/v1/completions"]
    return entries if len(entries) == count else None


class Scheduling(Directory):
    refused = ServerTest.refused

    def race(self, *args: str, weights: dict | None = None, light: int = 1) -> tuple[list, dict]:
        """The heavy tenant's flood, then the light one's requests: the order in which they end, and the tenants' status."""
        heavy, admin = (self.keys("create", "--tenant", name, "--scope", scope) for name, scope in (("heavy", "infer"), ("ops", "admin")))
        key = self.keys("create", "--tenant", "light", "--scope", "infer")
        for tenant, weight in (weights or {}).items():
            self.keys("tenant", "set", tenant, "--weight", str(weight))
        server = self.start("--max-running", "2", "--max-wait", "3600", *args, state=self.path("state.db"), adapters=("sql", "tag"))
        failed, threads = [], []

        def ask(name: str, secret: str, model: str, tokens: int):
            answer = server.complete("Once upon a time there was", model=model, key=secret, max_tokens=tokens, temperature=0, ignore_eos=True)
            if answer.status != 200:
                failed.append((name, answer))

        def begin(*job):
            threads.append(threading.Thread(target=ask, args=job))
            threads[-1].start()

        status = lambda: server.get("/v1/status", key=admin).json
        for _ in range(FLOOD):
            begin("heavy", heavy, "sql", LONG)
        wait_for(lambda: {t["name"]: t["requests"] for t in status()["tenants"]}.get("heavy") == FLOOD, "the whole flood")
        for _ in range(light):
            begin("light", key, "tag", SHORT)
        for thread in threads:
            thread.join(PATIENCE)
        # As the server saw them end: these threads may be woken in another order.
        names = {key[3:15]: name for key, name in ((heavy, "heavy"), (key, "light"))}
        order = [names[e["key"]] for e in wait_for(lambda: ended(server, FLOOD + light), "the log")]

        def idle():
            tenants = status()["tenants"]
            return all(t["waiting"] + t["running"] == 0 for t in tenants) and {t["name"]: t for t in tenants}

        tenants = wait_for(idle, "an idle server")
        self.metrics = server.get("/metrics", key=admin).text
        server.stop(0)
        self.assertEqual(failed, [])
        self.assertEqual(sorted(order), ["heavy"] * FLOOD + ["light"] * light)
        return order, tenants

    def test_a_light_tenant_does_not_wait_behind_a_flood(self):
        order, tenants = self.race()
        self.assertLess(order.index("light"), FLOOD * 3 // 4, order)  # part of the flood had ended before it came
        for name, tokens in (("heavy", FLOOD * LONG), ("light", SHORT)):
            tenant = tenants[name]
            self.assertEqual(tenant["output_tokens"], tokens)
            self.assertEqual((tenant["waiting"], tenant["running"]), (0, 0))
            self.assertEqual(tenant["service"], tenant["prompt_tokens"] + 2 * tenant["output_tokens"])
            self.assertIn(f'lorikeet_tenant_service_total{{tenant="{name}"}}', self.metrics)

    def test_first_come_first_served_makes_it_wait(self):
        order, _ = self.race("--scheduling-policy", "fcfs")
        self.assertEqual(order.index("light"), len(order) - 1 - order[::-1].index("light"))
        self.assertGreaterEqual(order.index("light"), FLOOD - 3, order)

    def test_weights_reach_the_scheduler(self):
        _, tenants = self.race(weights={"light": 4, "heavy": 0.5})
        self.assertEqual((tenants["light"]["weight"], tenants["heavy"]["weight"]), (4, 0.5))

    def test_first_token_deadlines(self):
        server = self.start("--max-running", "1", "--slo-first-token", "1", "--max-wait", "3600", adapters=())
        self.assertEqual(server.complete(max_tokens=2).status, 200)
        answers, threads = [], []
        for _ in range(40):
            threads.append(threading.Thread(target=lambda: answers.append(server.complete(max_tokens=450, temperature=0, ignore_eos=True))))
            threads[-1].start()
        for thread in threads:
            thread.join(PATIENCE)
        server.stop(0)
        late = [a for a in answers if a.status != 200]
        self.assertGreater(len(late), 0)
        for answer in late:
            self.refused(answer, 408, "first token")
        self.assertGreater(len(answers), len(late), "who is in time is served")


if __name__ == "__main__":
    unittest.main()
