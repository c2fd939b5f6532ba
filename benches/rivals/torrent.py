"""One BitTorrent peer, by libtorrent's Python binding. Runs under the system's own Python, which has the binding.

`make FILE-OR-FOLDER TORRENT PIECE-BYTES`, or `peer TORRENT FOLDER ADDRESS`, which says `ready`, and then takes lines:
`connect ADDRESS…` (begins) ; it says `NUMBER` for the bytes that are there whenever there are more, and `complete` once.
No tracker, DHT or local discovery takes part: peers are told of each other. It speaks TCP only, since its own transport
over UDP, which it prefers, is many times slower on fast links. Everything else is as libtorrent ships it.
"""

import os
import sys
import threading
import time

import libtorrent

PORT = 6881


def make(source, torrent, piece):
    files = libtorrent.file_storage()
    libtorrent.add_files(files, source)
    made = libtorrent.create_torrent(files, int(piece))
    libtorrent.set_piece_hashes(made, os.path.dirname(source))
    with open(torrent, "wb") as out:
        out.write(libtorrent.bencode(made.generate()))


def peer(torrent, folder, address):
    session = libtorrent.session({
        "listen_interfaces": f"{address}:{PORT}", "enable_dht": False, "enable_lsd": False, "enable_upnp": False,
        "enable_natpmp": False, "enable_outgoing_utp": False, "enable_incoming_utp": False, "alert_mask": 0})
    handle = session.add_torrent({"ti": libtorrent.torrent_info(torrent), "save_path": folder})
    checking = (libtorrent.torrent_status.checking_files, libtorrent.torrent_status.checking_resume_data)
    while handle.status().state in checking:
        time.sleep(0.01)
    print("ready", flush=True)
    threading.Thread(target=connect, args=(handle,), daemon=True).start()
    told, complete = -1, False
    while True:
        status = handle.status()
        if status.total_wanted_done != told:
            told = status.total_wanted_done
            print(told, flush=True)
        if status.is_seeding and not complete:
            complete = True
            handle.flush_cache()
            print("complete", flush=True)
        time.sleep(0.01)


def connect(handle):
    for line in sys.stdin:
        for address in line.split()[1:]:
            handle.connect_peer((address, PORT))


if __name__ == "__main__":
    {"make": make, "peer": peer}[sys.argv[1]](*sys.argv[2:])
