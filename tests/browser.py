"""A headless Chromium with one page, for tests of web pages."""

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

BROWSER = shutil.which('chromium') or shutil.which('chromium-browser')
FLAGS = [
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync',
    '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--window-size=1400,900',
    '--remote-debugging-port=0',
]  # fmt: skip


class Page:
    """A headless browser with one page, steered by its debugging protocol."""

    def __init__(self, address, profile, *flags):
        from websockets.sync.client import connect

        self.process = subprocess.Popen(
            [BROWSER, *FLAGS, *flags, f'--user-data-dir={profile}', address],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        told = Path(profile, 'DevToolsActivePort')
        wait_for(lambda: told.exists() and told.read_text().strip())
        port = told.read_text().split()[0]
        pages = json.load(urllib.request.urlopen(f'http://127.0.0.1:{port}/json', timeout=20))
        (page,) = [each for each in pages if each['type'] == 'page']
        self.socket = connect(page['webSocketDebuggerUrl'], max_size=None)
        self.calls = 0

    def call(self, method, **parameters):
        self.calls += 1
        self.socket.send(json.dumps(dict(id=self.calls, method=method, params=parameters)))
        while True:
            answer = json.loads(self.socket.recv(timeout=120))
            if answer.get('id') == self.calls:
                return answer['result']

    def evaluate(self, expression):
        """Value of JavaScript, of a promise when it is fulfilled."""
        settings = dict(awaitPromise=True, returnByValue=True)
        answer = self.call('Runtime.evaluate', expression=expression, **settings)
        assert 'exceptionDetails' not in answer, answer['exceptionDetails']
        return answer['result'].get('value')

    def text(self):
        return self.evaluate('document.body ? document.body.innerText : ""')

    def screenshot(self):
        data = base64.b64decode(self.call('Page.captureScreenshot', format='png')['data'])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()
        self.process.terminate()
        self.process.wait(20)


def wait_for(condition, seconds=60):
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, 'it did not come'
        time.sleep(0.2)


needs_browser = pytest.mark.skipif(
    BROWSER is None, reason='no chromium here (apt-get install chromium)'
)
