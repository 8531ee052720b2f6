# Talks to the server at host:port as two of Debian's clients do: pymemcache, in
# pure Python, and pylibmc, over libmemcached; text, binary and UDP. Ends with an
# error at the first thing that is not as it should be.
import sys

import pylibmc
from pymemcache.client.base import Client

host, port = sys.argv[1], int(sys.argv[2])


def same(what, got, want):
    if got != want:
        sys.exit(f"{what}: got {got!r}, want {want!r}")


def pure():
    c = Client((host, port), timeout=20, connect_timeout=20)
    c.flush_all()
    same("set", c.set("key", b"value", expire=100, flags=7, noreply=False), True)
    same("get", c.get("key"), b"value")
    value, cas = c.gets("key")
    same("gets", value, b"value")
    same("cas", c.cas("key", b"swapped", cas, noreply=False), True)
    same("cas again", c.cas("key", b"x", cas, noreply=False), False)
    same("add", c.add("key", b"x", noreply=False), False)
    same("replace", c.replace("key", b"new", noreply=False), True)
    same("append", c.append("key", b"er", noreply=False), True)
    same("prepend", c.prepend("key", b"a ", noreply=False), True)
    same("get", c.get("key"), b"a newer")
    same("set", c.set("n", b"41", noreply=False), True)
    same("incr", c.incr("n", 1), 42)
    same("decr", c.decr("n", 50), 0)
    same("incr of nothing", c.incr("none", 1), None)
    same("touch", c.touch("key", 50, noreply=False), True)
    many = {f"key-{i}": f"value {i}".encode() * (i + 1) for i in range(300)}
    same("set_many", c.set_many(many, noreply=False), [])
    same("get_many", c.get_many(list(many) + ["none"]), many)
    large = bytes(range(256)) * 4000
    same("set large", c.set("large", large, noreply=False), True)
    same("get large", c.get("large"), large)
    same("delete", c.delete("key", noreply=False), True)
    same("delete again", c.delete("key", noreply=False), False)
    c.set("quiet", b"1", noreply=True)
    c.delete("quiet", noreply=True)
    same("after noreply", c.get("quiet"), None)
    same("version", c.version(), b"1.6.18")
    same("stats", c.stats()[b"curr_items"], 302)
    c.close()


def library(binary):
    c = pylibmc.Client([f"{host}:{port}"], binary=binary, behaviors={"cas": True, "tcp_nodelay": True})
    c.flush_all()
    same("set", c.set("key", "value", time=100), True)
    same("get", c.get("key"), "value")
    value, cas = c.gets("key")
    same("cas", c.cas("key", "swapped", cas), True)
    same("cas again", c.cas("key", "x", cas), False)
    same("add", c.add("key", "x"), False)
    same("replace", c.replace("key", "new"), True)
    same("append", c.append("key", "er"), True)
    same("get", c.get("key"), "newer")
    same("set", c.set("n", "41"), True)
    same("incr", c.incr("n", 1), 42)
    same("decr", c.decr("n", 2), 40)
    same("touch", c.touch("key", 50), True)
    many = {f"key-{i}": "value" * (i + 1) for i in range(300)}
    same("set_multi", c.set_multi(many), [])
    same("get_multi", c.get_multi(list(many) + ["none"]), many)
    large = bytes(range(256)) * 4000
    same("set large", c.set("large", large), True)
    same("get large", c.get("large"), large)
    same("delete", c.delete("key"), True)
    same("delete again", c.delete("key"), False)
    same("get", c.get("key"), None)
    same("stats", int(c.get_stats()[0][1]["curr_items"]), 302)


def datagrams():
    tcp = pylibmc.Client([f"{host}:{port}"])
    for binary in False, True:
        # libmemcached does not read over UDP: it only sends what needs no reply.
        udp = pylibmc.Client([f"udp:{host}:{port}"], binary=binary)
        for i in range(50):
            udp.set(f"udp-{binary}-{i}", f"value {i}")
        for i in range(50):
            for tries in range(2000):
                got = tcp.get(f"udp-{binary}-{i}")
                if got is not None:
                    break
            same("set over UDP", got, f"value {i}")


pure()
library(False)
library(True)
datagrams()
print("ok")
