// The Polo dashboard: figures, directory, charts.

import { byId, debounced, getJson, h, replace, setText } from "/shared/dom.js";
import { ago, compact, count, decimal, duration, integer } from "/shared/format.js";
import { live } from "/shared/live.js";
import { VirtualTable } from "/shared/table.js";
import { drawBars, TimeChart } from "/shared/charts.js";

const CHIPS = 40;
const REFRESH_MS = 4000;
const HISTORY = 360; // Samples; as many as the server keeps.
const SAMPLE_S = 5;
const OPENED = "polo-opened"; // The agent whose page leads back here, see agent.js.

// What is looked for. It is also the address of the page, so it can be passed on.
const asked = new URLSearchParams(location.search);
const filter = {
  prefix: asked.get("prefix") ?? "",
  tags: new Set(asked.getAll("tag")),
  online: asked.get("online") === "1",
  sort: asked.get("sort") ?? "-polo",
};

function parameters() {
  const query = new URLSearchParams();
  if (filter.prefix) query.set("prefix", filter.prefix);
  for (const tag of filter.tags) query.append("tag", tag);
  if (filter.online) query.set("online", "1");
  query.set("sort", filter.sort);
  return query;
}

function remembered() {
  history.replaceState(history.state, "", `?${parameters()}`);
  sessionStorage.setItem("polo-list", location.search);
}

function changed() {
  remembered();
  drawTags();
  table.reset();
}

// The table.

const agentPath = (agent) => `/agents/${encodeURIComponent(agent.address)}`;

const table = new VirtualTable(byId("agents"), {
  label: "Public agents",
  nouns: ["public agent", "public agents"],
  empty: "No public agent fits. Private agents are never listed.",
  sort: filter.sort,
  columns: [
    {
      label: "Agent",
      sort: "name",
      width: "minmax(0, 2fr)",
      render: (agent) =>
        h("span", { class: "name" },
          h("a", { href: agentPath(agent), tabindex: -1 }, agent.hostname || agent.address),
          agent.hostname ? h("span", { class: "muted mono wide-only" }, agent.address) : null),
    },
    {
      label: "Tags",
      width: "minmax(0, 2fr)",
      wideOnly: true,
      render: (agent) => h("span", { class: "tags" }, agent.tags.map((tag) => h("span", { class: "tag", title: tag }, tag))),
    },
    { label: "Polo", sort: "polo", descending: true, number: true, width: "64px", narrow: "44px", render: (agent) => integer(agent.polo) },
    {
      label: "Last seen",
      sort: "last_seen",
      descending: true,
      width: "100px",
      narrow: "78px",
      render: (agent) =>
        agent.online
          ? h("span", { class: "state good" }, "online")
          : h("span", { class: "state off" }, ago(agent.last_seen_unix)),
    },
    { label: "Version", width: "76px", wideOnly: true, render: (agent) => h("span", { class: "muted" }, agent.version || "–") },
  ],
  async fetchWindow({ offset, limit, sort, signal }) {
    const query = parameters();
    query.set("sort", sort);
    query.set("offset", offset);
    query.set("limit", limit);
    const page = await getJson(`/api/v1/agents?${query}`, { signal });
    return { total: page.total, rows: page.agents };
  },
  onOpen(agent) {
    sessionStorage.setItem(OPENED, agentPath(agent));
    location.assign(agentPath(agent));
  },
  // Whoever comes back from an agent's page finds the table where it was.
  onRest: (position) => history.replaceState({ table: position }, ""),
  position: history.state?.table,
  onSort(sort) {
    filter.sort = sort;
    remembered();
  },
});

byId("agents").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (link) sessionStorage.setItem(OPENED, link.pathname);
});
if (history.state?.table?.active >= 0) table.grid.focus({ preventScroll: true });

// Search and tags.

const search = byId("search");
search.value = filter.prefix;
search.addEventListener("input", debounced(() => {
  filter.prefix = search.value.trim().toLowerCase();
  changed();
}, 200));

const onlyOnline = byId("only-online");
onlyOnline.checked = filter.online;
onlyOnline.addEventListener("change", () => {
  filter.online = onlyOnline.checked;
  changed();
});

let tags = [];
const findTag = byId("find-tag");
findTag.addEventListener("input", debounced(loadTags, 200));

async function loadTags() {
  const query = new URLSearchParams({ limit: CHIPS });
  const prefix = findTag.value.trim().toLowerCase();
  if (prefix) query.set("prefix", prefix);
  try {
    tags = (await getJson(`/api/v1/tags?${query}`)).tags;
  } catch {
    return; // The status of the page says that the server does not answer.
  }
  drawTags();
}

function drawTags() {
  const known = new Map(tags.map(({ tag, agents }) => [tag, agents]));
  const chosen = [...filter.tags].filter((tag) => !known.has(tag));
  const focused = document.activeElement?.dataset?.tag;
  const chips = [...chosen.map((tag) => [tag, null]), ...known].map(([tag, agents]) =>
    h("button", {
      type: "button",
      class: "tag",
      "data-tag": tag,
      "aria-pressed": String(filter.tags.has(tag)),
      on: { click: () => toggle(tag) },
    }, tag, agents === null ? null : [" ", h("span", { class: "muted" }, compact(agents))]));
  const list = replace(byId("tags"), chips);
  // The chips are new; who was at one stays there.
  if (focused !== undefined) [...list.children].find((chip) => chip.dataset.tag === focused)?.focus();
}

function toggle(tag) {
  if (!filter.tags.delete(tag)) filter.tags.add(tag);
  changed();
}

// Figures and charts.

const onlineChart = new TimeChart(byId("online-chart"), {
  label: "Agents online",
  height: 140,
  top: 4,
  series: [
    { label: "all", colour: 1, fill: true, format: compact },
    { label: "public", colour: 3, format: compact },
  ],
});
const requestChart = new TimeChart(byId("request-chart"), {
  label: "Requests per second",
  height: 120,
  series: [{ label: "requests/s", colour: 2, fill: true, format: decimal }],
});
const past = { times: [], online: [], public_online: [], requests_per_s: [] };

function drawPast() {
  onlineChart.set(past.times, [past.online, past.public_online]);
  requestChart.set(past.times, [past.requests_per_s]);
}

function remember(figures) {
  if (past.times.length > 0 && figures.at - past.times.at(-1) < SAMPLE_S) return;
  past.times.push(figures.at);
  for (const name of ["online", "public_online", "requests_per_s"]) past[name].push(figures[name]);
  if (past.times.length > HISTORY) for (const values of Object.values(past)) values.shift();
  drawPast();
}

let histogram = "";

function show(figures) {
  setText(byId("online"), integer(figures.online));
  setText(byId("registered"), `of ${integer(figures.registered)} registered`);
  setText(byId("public"), integer(figures.public));
  setText(byId("public-online"), `${integer(figures.public_online)} online`);
  setText(byId("networks"), integer(figures.networks));
  setText(byId("trust"), integer(figures.trust_links));
  setText(byId("requests"), count(figures.requests));
  setText(byId("rate"), `${decimal(figures.requests_per_s)} per second`);
  setText(byId("uptime"), duration(figures.uptime_s));
  setText(byId("version"), `pilotfleet ${figures.version}`);
  remember(figures);
  const state = JSON.stringify([figures.polo, figures.versions]);
  if (state !== histogram) {
    histogram = state;
    showDistribution(figures);
  }
}

function showDistribution({ polo, versions }) {
  setText(byId("polo-note"), polo.agents ? `median ${integer(polo.p50)}, top tenth from ${integer(polo.p90)}` : "");
  drawBars(byId("polo-bars"), { label: "Public agents by polo", bins: polo.histogram, format: integer, noun: "agents" });
  const all = Object.values(versions).reduce((sum, count) => sum + count, 0);
  replace(byId("versions"), Object.entries(versions).map(([version, count]) =>
    h("li", {}, h("span", { class: "clip" }, version), h("span", {}, integer(count)),
      h("meter", { min: 0, max: all, value: count, "aria-label": `share of version ${version}` }))));
}

async function start() {
  drawTags();
  loadTags();
  try {
    const { times, online, public_online, requests_per_s } = await getJson("/api/v1/history");
    Object.assign(past, { times, online, public_online, requests_per_s });
    drawPast();
  } catch {
    // Without a past the charts begin now.
  }
  live("/api/v1/stream", { events: { figures: show }, status: byId("live") });
  setInterval(() => {
    if (document.visibilityState !== "visible") return;
    table.refresh();
    loadTags();
  }, REFRESH_MS);
}

start();
