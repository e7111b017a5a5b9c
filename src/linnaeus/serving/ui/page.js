// The page of `linnaeus serve`: a picture in, ranked answers out. No library, nothing from elsewhere.
"use strict";

const TEXTS = {
  en: {
    model: "Model", drop: "Drop a picture here, or click to choose one", token: "Token", enter: "Go on", busy: "Looking …",
    denied: "This service asks for a token.", lost: "The service cannot be reached.", other: "中文",
  },
  zh: {
    model: "模型", drop: "把图片拖到这里，或点击选择", token: "令牌", enter: "继续", busy: "识别中……",
    denied: "此服务需要令牌。", lost: "无法连接到服务。", other: "English",
  },
};
const $ = (id) => document.getElementById(id);
let language = navigator.language.startsWith("zh") ? "zh" : "en";
let status = "";
let token = "";
let picture = null;
let asked = 0;

function speak() {
  document.documentElement.lang = language;
  for (const each of document.querySelectorAll("[data-text]")) each.textContent = TEXTS[language][each.dataset.text];
  $("language").textContent = TEXTS[language].other;
  tell(status);
}

function tell(text) {
  status = text;
  $("status").textContent = TEXTS[language][text] || text;
}

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("lost");
  }
  $("door").hidden = response.status !== 401;
  if (response.status === 401) throw new Error("denied");
  const said = await response.json();
  if (!response.ok) throw new Error(said.error);
  return said;
}

async function listModels() {
  const { models } = await ask("models");
  $("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
}

async function classify() {
  if (!picture) return;
  const turn = ++asked;
  tell("busy");
  $("answers").replaceChildren();
  try {
    const model = encodeURIComponent($("model").value);
    const said = await ask(`classify?top=5&model=${model}`, { method: "POST", body: picture });
    if (turn !== asked) return;
    tell(`${said.model} · ${said.version.slice(0, 12)} · ${said.milliseconds.total.toFixed(0)} ms`);
    $("answers").replaceChildren(...said.predictions[0].top.map(row));
  } catch (error) {
    if (turn === asked) tell(error.message);
  }
}

function row({ label, probability }) {
  const item = document.createElement("li");
  const name = document.createElement("span");
  const share = document.createElement("span");
  const bar = document.createElement("meter");
  name.textContent = label;
  share.textContent = `${(100 * probability).toFixed(1)} %`;
  bar.value = probability;
  item.append(name, share, bar);
  return item;
}

function take(file) {
  if (!file) return;
  picture = file;
  URL.revokeObjectURL($("picture").src);
  $("picture").src = URL.createObjectURL(file);
  $("picture").hidden = false;
  $("hint").hidden = true;
  classify();
}

$("file").addEventListener("change", () => take($("file").files[0]));
$("model").addEventListener("change", classify);
$("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  speak();
});
$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  listModels().then(classify, (error) => tell(error.message));
});
for (const kind of ["dragenter", "dragover"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) $("drop").addEventListener(kind, () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files[0]);
});

speak();
listModels().catch((error) => tell(error.message));
