"nbs/explore.ipynb as people use it: in JupyterLab, in a browser, with the mouse and the keyboard"

import json, os, re, secrets, shutil, socket, subprocess, sys, time
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from conftest import REPO
from playwright.sync_api import expect, sync_playwright

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = secrets.token_hex()


@pytest.fixture
def project(tmp_path):
    "A copy of the notebook and of the released rows"
    for name in ("settings.ini", "nbs/explore.ipynb", "outputs/results.csv", "outputs/predictions.npz"):
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, tmp_path / "project" / name)
    return tmp_path / "project"


@pytest.fixture
def lab(project, tmp_path):
    "The address of a JupyterLab of that copy, whose settings are its own and ask for no news"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folders = {
        name: str(tmp_path / name)
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
            "IPYTHONDIR",
        )
    }
    quiet = (
        tmp_path
        / "JUPYTERLAB_SETTINGS_DIR"
        / "@jupyterlab"
        / "apputils-extension"
        / "notification.jupyterlab-settings"
    )
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    paths = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))
    env = {
        **os.environ,
        **folders,
        "JUPYTER_TOKEN": TOKEN,
        "JUPYTER_PREFER_ENV_PATH": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": paths,
    }
    options = dict(root_dir=project, ip="127.0.0.1", port=port, port_retries=0)
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--LabApp.extension_manager=readonly",
        *(f"--ServerApp.{k}={v}" for k, v in options.items()),
    ]
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(command, cwd=project, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield wait_for(f"http://127.0.0.1:{port}", server, tmp_path / "lab.log")
    finally:
        server.terminate()
        server.wait(30)


def wait_for(address, server, log):
    "The address, as soon as it answers"
    while server.poll() is None:
        try:
            urlopen(f"{address}/api", timeout=5)
            return address
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"no JupyterLab: {log.read_text()[-3000:]}")


@pytest.fixture
def page(lab):
    "The notebook in a real browser; `page.asked` are the hosts that were asked for anything"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page, asked = browser.new_page(viewport=dict(width=1280, height=1000)), set()
        page.asked = asked
        page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.goto(f"{lab}/lab/tree/nbs/explore.ipynb?token={TOKEN}")
        yield page
        browser.close()


def stored(path):
    "The outputs of the explorer's cell in a notebook file, by type; what is no image as text"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (cell,) = [c for c in cells if "explorer(rows" in "".join(c["source"])]
    data = [
        {k: "".join(v) if isinstance(v, list) else v for k, v in o["data"].items()} for o in cell["outputs"]
    ]
    images, words = ([d[k] for d in data if k in d] for k in ("image/png", "text/markdown"))
    return [re.sub(r"\s", "", i) for i in images], words


def whole(data):
    "Is this all of a notebook's bytes?"
    try:
        return bool(json.loads(data))
    except ValueError:
        return False


def test_as_committed():
    "The figure is there for readers without a kernel, and nothing that only a kernel could fill"
    notebook = json.loads((REPO / "nbs/explore.ipynb").read_text(encoding="utf-8"))
    images, words = stored(REPO / "nbs/explore.ipynb")
    assert len(images) == 1 and len(words) == 2 and "|" in words[0] and "|" in words[1]
    views = [
        o
        for c in notebook["cells"]
        for o in c.get("outputs", [])
        if "application/vnd.jupyter.widget-view+json" in o.get("data", {})
    ]
    assert (
        not views and "widgets" not in notebook["metadata"]
    ), "explore.ipynb was saved with the controls of a kernel that is gone: take these out of the file"


@pytest.mark.skipif(not BROWSER, reason="no chromium, chromium-browser or google-chrome is installed")
def test_in_a_browser(page, project, tmp_path):
    image, (best, table) = page.locator(".jp-RenderedImage img"), (
        page.locator(".jp-OutputArea .jp-RenderedMarkdown").nth(i) for i in (0, 1)
    )
    shown = lambda: image.get_attribute("src").partition(",")[2]

    def follows(act, *followers):
        "Whether the image, and these words, become others"
        before, words = shown(), [f.inner_text() for f in followers]
        act()
        expect(image).not_to_have_attribute("src", f"data:image/png;base64,{before}")
        for f, w in zip(followers, words):
            expect(f).not_to_have_text(w, use_inner_text=True)

    # as it is committed: the figure is there before anything has run
    expect(image).to_be_visible()
    expect(page.locator(".widget-checkbox")).to_have_count(0)
    assert [shown()] == stored(project / "nbs/explore.ipynb")[0]

    expect(page.get_by_text("| Idle")).to_be_visible()  # the kernel is there
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    expect(page.get_by_label("kd,mp,qat", exact=True)).to_be_checked()
    expect(page.get_by_label("accept", exact=True)).to_be_checked()
    tolerance, megabytes, score = (page.locator(".widget-slider").nth(i) for i in range(3))
    expect(megabytes).to_be_visible()
    expect(score).to_be_hidden()

    # the mouse
    follows(lambda: page.get_by_label("kd,mp", exact=True).click(), table)
    expect(table.locator("tr")).to_have_count(8)  # a head, and seven combinations
    follows(lambda: page.get_by_role("button", name="paper's convention").click(), best, table)
    follows(lambda: page.get_by_label("supersense", exact=True).click(), best, table)

    # the keyboard
    handle = lambda slider: slider.locator(".noUi-handle")
    follows(lambda: (handle(tolerance).focus(), page.keyboard.press("ArrowRight")), table)
    follows(lambda: (handle(megabytes).focus(), page.keyboard.press("Home")), best)
    expect(best).to_contain_text("Nothing fits")
    follows(lambda: page.get_by_role("button", name="score at least").click(), best)
    expect(megabytes).to_be_hidden()
    expect(score).to_be_visible()

    # nothing chosen, and chosen again
    page.get_by_label("accept", exact=True).click()
    expect(image).to_have_count(0)
    expect(best).to_contain_text("No task is ticked")
    page.get_by_label("accept", exact=True).click()
    expect(image).to_be_visible()
    page.screenshot(path=tmp_path / "explore.png")

    # saved: what was shown last
    before = (project / "nbs/explore.ipynb").read_bytes()
    page.keyboard.press("Control+s")
    for _ in range(300):
        if (now := (project / "nbs/explore.ipynb").read_bytes()) != before and whole(now):
            break  # it is not written at once
        page.wait_for_timeout(100)
    images, (best_words, table_words) = stored(project / "nbs/explore.ipynb")
    assert images == [shown()] and images != stored(REPO / "nbs/explore.ipynb")[0]
    assert (
        best.inner_text().split("\n")[0] in best_words.replace("*", "")
        and "accept" not in table_words
        and "paper's convention" in table_words
    )
    assert page.asked == {"127.0.0.1"}
    assert "Traceback" not in page.content()
