// The page of one public agent.

import { byId, getJson, h, replace, setText } from "/shared/dom.js";
import { ago, dateTime, integer, percent } from "/shared/format.js";

const REFRESH_MS = 5000;
const key = decodeURIComponent(location.pathname.split("/").at(-1));
const source = `/api/v1/agents/${encodeURIComponent(key)}`;

function show(agent) {
  const name = agent.hostname || agent.address;
  document.title = `${name} · Polo`;
  setText(byId("name"), name);
  setText(byId("address"), agent.hostname ? agent.address : "");
  const state = byId("state");
  state.className = agent.online ? "state good" : "state off";
  setText(state, agent.online ? "online" : "offline");
  const tags = agent.tags.map((tag) => h("a", { class: "tag", href: `/?tag=${encodeURIComponent(tag)}` }, tag));
  const facts = {
    Address: h("span", { class: "mono" }, agent.address),
    Hostname: agent.hostname || "none",
    Tags: tags.length ? h("span", { class: "tags" }, tags) : "none",
    Polo: [integer(agent.polo), h("span", { class: "muted" }, ` more than ${percent(agent.polo_above)} of the public agents`)],
    "Last seen": `${dateTime(agent.last_seen_unix)} (${ago(agent.last_seen_unix)})`,
    Registered: dateTime(agent.registered_unix),
    Version: agent.version || "unknown",
  };
  replace(byId("facts"), Object.entries(facts).map(([term, value]) => [h("dt", {}, term), h("dd", {}, value)]));
  // A hostname is of letters, digits and hyphens: the registry lets no other in.
  setText(byId("command-handshake"), `pilotctl handshake ${name}`);
  setText(byId("command-ping"), `pilotctl ping ${name}`);
  byId("json").setAttribute("href", source);
  byId("known").hidden = false;
}

async function load() {
  try {
    show(await getJson(source));
    setText(byId("problem"), "");
  } catch (error) {
    setText(byId("problem"), `${error.message}${error.hint ? ` – ${error.hint}` : ""}`);
    if (error.status === 404) {
      byId("known").hidden = true;
      setText(byId("name"), "No such agent");
      setText(byId("address"), "");
      setText(byId("state"), "");
      byId("state").className = "";
    }
  }
}

// Back to the list as it was, not to a new one.
const back = byId("back");
back.setAttribute("href", `/${sessionStorage.getItem("polo-list") ?? ""}`);
back.addEventListener("click", (event) => {
  const isPlain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.button);
  // Who came from the list is led to its place in it, which the history knows.
  if (!isPlain || history.length < 2 || sessionStorage.getItem("polo-opened") !== location.pathname) return;
  event.preventDefault();
  history.back();
});

load();
setInterval(() => {
  if (document.visibilityState === "visible") load();
}, REFRESH_MS);
