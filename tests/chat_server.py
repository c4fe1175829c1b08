"""A chat and completions server on this machine that answers as a test tells it to, and notes what it was asked."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer:
    """`reply(body, server)` gives the choices' texts, a status, (status, headers), (status, headers, error's
    message), or bytes to send as they are.

    As it comes it samples: each choice has a word of its own, from the seed.
    """

    def __init__(self, reply=None):
        self.bodies, self.paths, self.keys, self.times = [], [], [], []
        self.running = self.most_running = 0
        self.lock = threading.Lock()
        self.reply = reply or words
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.bodies.append(body)
                    server.paths.append(self.path)
                    server.keys.append(self.headers["Authorization"])
                    server.times.append(time.monotonic())
                    server.running += 1
                    server.most_running = max(server.most_running, server.running)
                said = server.reply(body, server)
                with server.lock:
                    server.running -= 1
                status, headers, *error = (
                    said if isinstance(said, tuple) else (said if isinstance(said, int) else 200, {})
                )
                message = {"error": {"message": error[0]}} if error else _message(said, status, self)
                content = said if isinstance(said, bytes) else json.dumps(message).encode()
                self.send_response(status)
                for name, value in ({"Content-Type": "application/json"} | headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_):  # clients that time out go away
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def _message(said, status, handler):
    if status != 200:
        return {"error": {"message": f"wrong: {handler.headers['Authorization']}"}}
    chat = handler.path.endswith("/chat/completions")
    choices = []
    for index, text in enumerate(said):
        finish = "content_filter" if text == "FILTERED" else "stop"
        choice = {"index": index, "finish_reason": finish}
        choices.append(choice | ({"message": {"role": "assistant", "content": text}} if chat else {"text": text}))
    usage = {"prompt_tokens": 1, "completion_tokens": 3 * len(said), "total_tokens": 1}
    return {"id": "x", "object": "o", "created": 0, "model": "m", "choices": choices, "usage": usage}


def asked(body):
    """The question of a request, without the form that it came in."""
    text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    return text.removeprefix("Question: ").removesuffix("\nAnswer:")


def words(body, server=None):
    """n different texts that tell which request they answer."""
    return [f"{asked(body)} {body.get('seed')}/{index}" for index in range(body.get("n", 1))]
