# SPDX-License-Identifier: Apache-2.0
"""Dynamic merging as clients and operators see it."""
import threading
import unittest

from harness import Directory, PATIENCE, wait_for

PROMPTS = ("Which customers live in Riga?", "Once upon a time there was", "2024-05-06", "sort: 3 1 2", "a", "SELECT name FROM")


class Merging(Directory):
    def answers(self, server, model: str, others: tuple = ()) -> list:
        """The tokens of one model's answers, all at once, while others are asked the same."""
        found, threads = {}, []

        def ask(name: str, i: int):
            answer = server.complete(PROMPTS[i], model=name, max_tokens=120, temperature=0, ignore_eos=True, logprobs=1)
            self.assertEqual(answer.status, 200, answer)
            found[name, i] = answer.json["choices"][0]["logprobs"]

        for i in range(len(PROMPTS)):
            for name in (model, *others):
                threads.append(threading.Thread(target=ask, args=(name, i)))
                threads[-1].start()
        for thread in threads:
            thread.join(PATIENCE)
        return [found[model, i] for i in range(len(PROMPTS))]

    def test_exact_adapters_do_not_notice_that_another_is_merged(self):
        plain = self.start(adapters=("sql", "tag"))
        self.assertTrue(all(a["exact"] for a in plain.get("/v1/adapters").json["data"]))
        expected = self.answers(plain, "tag", ("sql",))
        self.assertEqual(plain.status()["merging"]["chooser"], "never")
        self.assertEqual(plain.status()["merging"]["builds"], 0)
        plain.stop(0)
        server = self.start("--merging", "dlora", "--max-running", "2", "--exact", "t*", adapters=("sql", "tag"))
        exact = {a["name"]: a["exact"] for a in server.get("/v1/adapters").json["data"]}
        self.assertEqual(exact, {"sql": False, "tag": True})
        wait_for(lambda: self.merged_by(server), "a merged step")
        before = server.status()["merging"]["merged_steps"]
        self.assertEqual(self.answers(server, "tag", ("sql",)), expected)
        merging = wait_for(lambda: self.merged_by(server, before), "merged steps beside the exact adapter's")
        self.assertEqual((merging["chooser"], merging["adapter"]), ("dlora", "sql"))
        metrics = server.get("/metrics").text
        self.assertIn('lorikeet_merge_info{chooser="dlora",adapter="sql"} 1', metrics)
        # A sum with an exact part is exact: asking it alone merges nothing.
        steps = server.status()["merging"]["merged_steps"]
        self.answers(server, "sql*0.5+tag*0.5")
        self.assertEqual(server.status()["merging"]["merged_steps"], steps)
        pool = server.status()["pool"]
        self.assertGreater(pool["merged"], 0)
        self.assertEqual(pool["free"] + pool["kv"] + pool["cached"] + pool["adapter"] + pool["merged"], pool["pages"])
        # Unloading takes the merged weights along.
        self.assertEqual(server.call("DELETE", "/v1/adapters/sql").status, 200)
        self.assertEqual(wait_for(lambda: (m := server.status()["merging"])["adapter"] is None and m, "no merged adapter")["chooser"], "dlora")
        server.stop(0)

    def merged_by(self, server, steps: int = 0):
        """The status once there are more merged steps than that; if not, asks for sql alone, more than a step holds."""
        if server.status()["merging"]["merged_steps"] <= steps:
            self.answers(server, "sql")
        merging = server.status()["merging"]
        return merging["merged_steps"] > steps and merging


if __name__ == "__main__":
    unittest.main()
