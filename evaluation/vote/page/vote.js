"use strict";

// Votes are stored in the browser first, and removed when the server has acknowledged that they are on its disk.

const UNSENT = "llm4gen-vote.unsent";
const NAME = "llm4gen-vote.name";
const LONGEST_WAIT = 3000; // ms between two tries to reach the server
const FLASH = 140; // ms for which a choice is shown before the next question; a bouncing key is ignored meanwhile
const AHEAD = 2; // pairs that are loaded before they are needed
const KEYS = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", ArrowDown: "tie", " ": "tie" };
const SIDES = { left: "Image A", right: "Image B", tie: "No difference" };

const at = (id) => document.getElementById(id);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

let session = null; // from the server: study, rater, questions, tasks
let step = 0; // number of the question, counted over all pairs
let shown = null; // the task whose images are on the page
let ready = false; // both images are visible, and no choice is being shown

// ---------------------------------------------------------------------------------------------- storage

const memory = {}; // where the browser forbids storage, a reload loses votes that were not sent

function stored(key) {
  try {
    return localStorage.getItem(key) ?? memory[key] ?? null;
  } catch {
    return memory[key] ?? null;
  }
}

function store(key, value) {
  memory[key] = value;
  try {
    localStorage.setItem(key, value);
  } catch {
    // see memory
  }
}

function unsent() {
  try {
    return JSON.parse(stored(UNSENT) ?? "[]");
  } catch {
    return [];
  }
}

const sameThing = (a, b) => ["study", "rater", "task", "question"].every((name) => a[name] === b[name]);

function remember(ballot) {
  store(UNSENT, JSON.stringify([...unsent().filter((other) => !sameThing(other, ballot)), ballot]));
}

function forget(ballot) {
  store(UNSENT, JSON.stringify(unsent().filter((other) => other.id !== ballot.id)));
}

// ---------------------------------------------------------------------------------------------- server

async function post(address, content) {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), 10000);
  try {
    const answer = await fetch(address, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(content),
      signal: abort.signal,
    });
    return { status: answer.status, content: await answer.json() };
  } catch {
    return { status: 0, content: {} };
  } finally {
    clearTimeout(timer);
  }
}

let sending = false;
let hurry = () => {};

async function send() {
  if (sending || !session) return;
  sending = true;
  let wait = 500;
  for (let ballot; (ballot = unsent().find((one) => one.study === session.study)); ) {
    const { status, content } = await post("/api/votes", ballot);
    if (status === 200 || (status === 400 && content.error)) {
      forget(ballot);
      trouble("server", "");
      if (status === 400) trouble("refused", `An answer was refused: ${content.error}`);
      wait = 500;
      showSaved();
      continue;
    }
    const waiting = unsent().length === 1 ? "1 answer waits" : `${unsent().length} answers wait`;
    const why = content.error ?? "The server cannot be reached.";
    trouble("server", `${why} ${waiting} in this browser and will be sent later; you can continue.`);
    await Promise.race([pause(wait), new Promise((now) => (hurry = now))]);
    wait = Math.min(2 * wait, LONGEST_WAIT);
  }
  sending = false;
  showSaved();
}

function showSaved() {
  const number = unsent().filter((one) => one.study === session?.study).length;
  at("saved").textContent = number ? `${number} to send` : "Saved";
  at("saved").classList.toggle("waiting", number > 0);
  at("end-saved").textContent = number
    ? `${number} of your answers wait in this browser until the server is back; leave this page open.`
    : "All of your answers are saved. You can close this page.";
}

const troubles = { server: "", refused: "", image: "" };

function trouble(kind, text) {
  troubles[kind] = text;
  const said = troubles.refused || troubles.server || troubles.image;
  const line = at("banner").firstElementChild;
  if (line.textContent !== said) line.textContent = said;
  at("banner").hidden = !said;
  at("banner-close").hidden = !troubles.refused;
}

// ---------------------------------------------------------------------------------------------- images

const loading = new Map(); // address: promise of an image that can be shown

function load(address) {
  if (!loading.has(address)) {
    loading.set(address, untilLoaded(address));
    if (loading.size > 4 * (AHEAD + 2)) loading.delete(loading.keys().next().value);
  }
  return loading.get(address);
}

async function untilLoaded(address) {
  for (let attempt = 0; ; attempt++) {
    const image = new Image();
    image.src = attempt ? `${address}?again=${attempt}` : address;
    try {
      await image.decode();
      trouble("image", "");
      return image;
    } catch {
      trouble("image", "An image cannot be loaded. Trying again.");
      await pause(Math.min(1000 * (attempt + 1), LONGEST_WAIT));
    }
  }
}

function frame(side, image) {
  const copy = image.cloneNode();
  copy.alt = SIDES[side];
  copy.draggable = false;
  copy.classList.toggle("tiny", image.naturalWidth <= 128);
  return copy;
}

// ---------------------------------------------------------------------------------------------- time

// Seconds during which the question was visible; a tab in the background does not count.
const clock = {
  before: 0,
  since: null,
  restart() {
    this.before = 0;
    this.since = document.hidden ? null : performance.now();
  },
  turn() {
    if (document.hidden && this.since !== null) {
      this.before += performance.now() - this.since;
      this.since = null;
    } else if (!document.hidden && this.since === null) {
      this.since = performance.now();
    }
  },
  seconds() {
    return (this.before + (this.since === null ? 0 : performance.now() - this.since)) / 1000;
  },
};

// ---------------------------------------------------------------------------------------------- voting

const steps = () => session.tasks.length * session.questions.length;
const taskOf = (number) => session.tasks[Math.floor(number / session.questions.length)];
const questionOf = (number) => session.questions[number % session.questions.length];
const answerOf = (number) => taskOf(number).choices[questionOf(number).id];

function answered() {
  return session.tasks.reduce((sum, task) => sum + Object.keys(task.choices).length, 0);
}

function firstOpen() {
  let number = 0;
  while (number < steps() && answerOf(number)) number++;
  return number;
}

function showView(id) {
  for (const view of ["start", "vote", "end"]) at(view).hidden = view !== id;
}

async function show(number) {
  step = number;
  ready = false;
  at("vote").classList.remove("ready");
  if (number >= steps()) return showEnd();
  showView("vote");
  const task = taskOf(number);
  const question = questionOf(number);
  const place = Math.floor(number / session.questions.length) + 1;
  at("vote").dataset.question = question.id;
  at("vote").dataset.step = number;
  const several = session.questions.length > 1;
  const part = several ? `, question ${(number % session.questions.length) + 1} of ${session.questions.length}` : "";
  at("place").textContent = `Pair ${place} of ${session.tasks.length}${part}`;
  at("bar").style.setProperty("--done", answered() / steps());
  at("bar").setAttribute("aria-valuemax", steps());
  at("bar").setAttribute("aria-valuenow", answered());
  at("question").textContent = question.text;
  at("prompt").textContent = task.text;
  at("back").classList.toggle("absent", number === 0);
  at("forward").classList.toggle("absent", !answerOf(number));
  mark(answerOf(number));
  if (task !== shown) {
    shown = null;
    for (const side of ["left", "right"]) at(`image-${side}`).replaceChildren();
    const images = await Promise.all([load(task.left), load(task.right)]);
    if (step !== number) return; // the rater went back or forward while they were loading
    // Both in the same frame: no image may appear before the other.
    at("image-left").replaceChildren(frame("left", images[0]));
    at("image-right").replaceChildren(frame("right", images[1]));
    shown = task;
  }
  at("said").textContent = `Pair ${place} of ${session.tasks.length}. ${question.text}`;
  ready = true;
  at("vote").classList.add("ready");
  clock.restart();
  for (let next = place; next < Math.min(place + AHEAD, session.tasks.length); next++) {
    load(session.tasks[next].left);
    load(session.tasks[next].right);
  }
}

function mark(choice) {
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.classList.toggle("chosen", button.dataset.choice === choice);
    if (button.closest(".answers")) button.setAttribute("aria-pressed", button.dataset.choice === choice);
  }
}

function newId() {
  // Not crypto.randomUUID, which browsers offer only over https; a phone uses http.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function vote(choice) {
  if (!ready) return;
  ready = false;
  const task = taskOf(step);
  const question = questionOf(step).id;
  if (task.choices[question] !== choice) {
    task.choices[question] = choice;
    remember({
      id: newId(),
      study: session.study,
      rater: session.rater,
      task: task.id,
      question,
      choice,
      seconds: Math.min(clock.seconds(), 86400),
    });
    showSaved();
    send();
  }
  mark(choice);
  at("said").textContent = `${SIDES[choice]}.`;
  const number = step;
  await pause(FLASH);
  if (step === number) show(number + 1);
}

function back() {
  if (step > 0) show(step - 1);
}

function forward() {
  if (ready && step < steps() && answerOf(step)) show(step + 1);
}

function showEnd() {
  showView("end");
  const pairs = session.tasks.length;
  at("end-text").textContent = `You have answered all questions on ${pairs} pairs.`;
  showSaved();
  at("end-title").focus();
  at("said").textContent = "";
}

// ---------------------------------------------------------------------------------------------- begin

function reservePrompt() {
  if (!session || at("vote").hidden) return;
  const probe = document.createElement("div");
  probe.className = "measure";
  at("prompt").parentElement.append(probe);
  probe.style.width = `${at("prompt").clientWidth}px`;
  const longest = session.tasks.map((task) => task.text).sort((a, b) => b.length - a.length).slice(0, 20);
  let height = 0;
  for (const text of longest) {
    probe.textContent = text;
    height = Math.max(height, probe.clientHeight);
  }
  probe.remove();
  document.documentElement.style.setProperty("--prompt", `${height}px`);
}

function askName(problem = "") {
  session = null;
  showView("start");
  at("name").value = stored(NAME) ?? "";
  at("name-error").textContent = problem;
  at("name").focus();
}

async function begin(name) {
  const { status, content } = await post("/api/session", { rater: name });
  if (status !== 200) {
    askName(content.error ?? "The server cannot be reached; try again.");
    return;
  }
  store(NAME, name);
  session = content;
  shown = null;
  // Votes that wait to be sent count as answered.
  const tasks = new Map(session.tasks.map((task) => [task.id, task]));
  for (const ballot of unsent()) {
    const mine = ballot.study === session.study && ballot.rater === session.rater;
    if (mine && tasks.has(ballot.task)) tasks.get(ballot.task).choices[ballot.question] = ballot.choice;
  }
  document.documentElement.style.setProperty("--ratio", session.width / session.height);
  at("who").textContent = name;
  showSaved();
  showView("vote");
  show(firstOpen());
  reservePrompt();
  at("question").focus({ preventScroll: true });
  send();
}

function otherName() {
  store(NAME, "");
  at("help").close();
  askName();
}

at("start-form").addEventListener("submit", (event) => {
  event.preventDefault();
  begin(at("name").value);
});

for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", (event) => {
    // After a click it loses the focus, so that space means "no difference" and does not press it again.
    if (event.detail > 0) button.blur();
    vote(button.dataset.choice);
  });
}
for (const [id, action] of Object.entries({ back, forward, "end-back": back, "help-name": otherName, "end-name": otherName })) {
  at(id).addEventListener("click", (event) => {
    if (event.detail > 0) at(id).blur();
    action();
  });
}
at("help-open").addEventListener("click", () => at("help").showModal());
at("help").addEventListener("click", (event) => {
  if (event.target === at("help")) at("help").close();
});
at("help").addEventListener("close", () => document.activeElement?.blur());
at("banner-close").addEventListener("click", () => trouble("refused", ""));

document.addEventListener("keydown", (event) => {
  if (!session || at("help").open || event.ctrlKey || event.metaKey || event.altKey) return;
  const onButton = event.target.closest("button") !== null;
  const key = event.key;
  let action = null;
  if (key === "Backspace") action = back;
  else if (key === "?") action = () => at("help").showModal();
  else if (key === "Enter" && !onButton) action = forward;
  else if (key in KEYS && !(key === " " && onButton)) action = () => vote(KEYS[key]);
  if (!action || (at("vote").hidden && key !== "Backspace")) return;
  event.preventDefault(); // no scrolling
  if (!event.repeat) action();
});
document.addEventListener("visibilitychange", () => clock.turn());
window.addEventListener("online", () => hurry());
window.addEventListener("resize", reservePrompt);
new ResizeObserver(() => {
  // The answers are as wide as the two images.
  const [left, right] = ["left", "right"].map((side) => at(`image-${side}`).getBoundingClientRect());
  document.documentElement.style.setProperty("--board", `${right.right - left.left}px`);
}).observe(at("image-left"));

if (stored(NAME)) begin(stored(NAME));
else askName();
