// Both pages: controls from what the server says about itself, one request at a time, steps shown as they come.

import { CanvasView } from "/page/canvas.js";
import { authorization, events, reason } from "/page/stream.js";

const find = (id) => document.getElementById(id);
const isAdvanced = document.body.dataset.page === "advanced";
const view = new CanvasView(find("view"));
let facts = null;
let running = null;
let turns = [];

// What the server says about its model needs a key where it has any: asked for first, and again for each key that is entered.
async function begin() {
  if (facts) return;
  const key = find("key").value;
  const response = await fetch("/page-facts", { headers: authorization(key) });
  if (response.status === 401) {
    find("key-label").hidden = false;
    find("go").disabled = true;
    if (key) view.fail(await reason(response));
    else find("key").focus();
    return;
  }
  if (!response.ok) throw new Error(await reason(response));
  facts = await response.json();
  view.clear();
  find("go").disabled = false;
  if (isAdvanced) buildAdvanced();
  else buildSimple();
}

function start() {
  begin().catch((error) => view.fail(`The server does not answer: ${error.message}`));
}

function buildSimple() {
  const own = Object.fromEntries(facts.settings.map((setting) => [setting.name, setting.value]));
  find("steps").value = own.steps;
  find("steps").max = facts.max_steps;
  find("length").value = Math.min(own.max_new_tokens, 64);
  find("length").max = facts.window;
  // Only these models can put noise back; the others' tokens stay.
  find("renoise-label").hidden = facts.family !== "lad";
  find("renoise").checked = !["none", "transfer"].includes(own.remasking);
}

function buildAdvanced() {
  for (const name of facts.models) find("model").append(new Option(name, name));
  for (const name of Object.keys(facts.profiles)) find("profile").append(new Option(name, name));
  find("profile").append(new Option("own", ""));
  find("profile").value = facts.profiles[facts.profile] ? facts.profile : "";
  find("window").placeholder = `none, at most ${facts.window}`;
  find("window").max = facts.window;
  for (const setting of facts.settings) find("settings").append(control(setting));
  find("profile").addEventListener("change", useProfile);
  useProfile();
}

function control(setting) {
  const label = document.createElement("label");
  label.title = setting.help;
  let field;
  if (setting.kind === "choice") {
    field = document.createElement("select");
    for (const choice of setting.choices) field.append(new Option(choice, choice));
  } else {
    field = document.createElement("input");
    field.type = { bool: "checkbox", int: "number", float: "number", list: "text" }[setting.kind];
    if (setting.low !== null) field.min = setting.low;
    if (setting.high !== null) field.max = setting.high;
    if (setting.kind === "float") field.step = "any";
    if (setting.may_be_empty) field.placeholder = "none";
  }
  field.id = `set-${setting.name}`;
  field.setAttribute("aria-description", setting.help);
  field.addEventListener("input", () => mark(setting, label, field));
  if (setting.kind === "bool") {
    label.className = "check";
    label.append(field, ` ${setting.name}`);
  } else label.append(setting.name, field);
  return label;
}

// A profile's values are shown in the fields; only what differs from them is sent.
function useProfile() {
  const profile = facts.profiles[find("profile").value];
  find("meaning").textContent = profile ? profile.meaning : "";
  for (const setting of facts.settings) {
    const field = find(`set-${setting.name}`);
    const value = profile ? (profile.settings[setting.name] ?? setting.fallback) : setting.value;
    if (setting.kind === "bool") field.checked = value;
    else field.value = Array.isArray(value) ? value.join(", ") : (value ?? "");
    field.dataset.profile = read(setting, field) === null ? "" : JSON.stringify(read(setting, field));
    mark(setting, field.closest("label"), field);
  }
}

function mark(setting, label, field) {
  label.classList.toggle("changed-setting", differs(setting, field));
}

function read(setting, field) {
  if (setting.kind === "bool") return field.checked;
  if (setting.kind === "choice") return field.value;
  if (field.value.trim() === "") return null;
  if (setting.kind === "list") {
    const parts = field.value.split(",").map((part) => part.trim()).filter(Boolean);
    return setting.name === "suppress_tokens" ? parts.map(Number) : parts;
  }
  return Number(field.value);
}

function differs(setting, field) {
  const value = read(setting, field);
  return (value === null ? "" : JSON.stringify(value)) !== field.dataset.profile;
}

function request() {
  const prompt = find("prompt").value;
  const body = { stream: true, stream_options: { steps: true } };
  const messages = [...turns, { role: "user", content: prompt }];
  if (!isAdvanced) {
    body.steps = Number(find("steps").value);
    body.max_new_tokens = Number(find("length").value);
    const own = Object.fromEntries(facts.settings.map((setting) => [setting.name, setting.value]));
    const renoises = !["none", "transfer"].includes(own.remasking);
    if (facts.family === "lad" && renoises !== find("renoise").checked) {
      // Without noise a masked answer is refined freely; with it, by the paper's rules.
      if (find("renoise").checked) body.profile = "paper";
      else body.remasking = "none";
    }
    return { ...body, messages };
  }
  body.model = find("model").value;
  if (find("profile").value) body.profile = find("profile").value;
  for (const setting of facts.settings) {
    const field = find(`set-${setting.name}`);
    const value = read(setting, field);
    if (value !== null && differs(setting, field)) body[setting.name] = value;
  }
  if (find("window").value !== "") {
    body.context_window = Number(find("window").value);
    delete body.max_new_tokens;
  }
  for (const name of ["draft", "infill"]) if (find(name).value.trim()) body[name] = find(name).value;
  if (find("system").value.trim()) messages.unshift({ role: "system", content: find("system").value });
  return { ...body, messages };
}

async function generate() {
  if (running || !facts) return;
  view.clear();
  running = new AbortController();
  find("go").disabled = true;
  find("stop").disabled = false;
  const pause = Number(find("pause").value) * 1000;
  const prompt = find("prompt").value;
  let text = "";
  try {
    for await (const event of events(request(), find("key").value, running.signal)) {
      if (event.step) {
        view.add(event.step);
        if (pause > 0) await sleep(pause, running.signal);
      }
      for (const choice of event.choices ?? []) text += choice.delta.content ?? "";
      if (event.lad) view.finish(text, event.lad);
    }
    // A turn without words would be refused with every later request.
    if (isAdvanced && find("talk").checked && text) remember(prompt, text);
  } catch (error) {
    if (error.name === "AbortError") view.stopped();
    else view.fail(error.message);
  } finally {
    running = null;
    find("go").disabled = false;
    find("stop").disabled = true;
  }
}

function remember(prompt, answer) {
  turns.push({ role: "user", content: prompt }, { role: "assistant", content: answer });
  for (const turn of turns.slice(-2)) {
    const item = document.createElement("li");
    item.textContent = `${turn.role}: ${turn.content}`;
    find("turns").append(item);
  }
  // The next one may be in it already.
  if (find("prompt").value === prompt) find("prompt").value = "";
}

function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(new DOMException("stopped", "AbortError")); }, { once: true });
  });
}

find("form").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
find("stop").addEventListener("click", () => running?.abort());
find("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("form").requestSubmit();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
find("forget")?.addEventListener("click", () => { turns = []; find("turns").replaceChildren(); });
find("key").addEventListener("change", start);
start();
