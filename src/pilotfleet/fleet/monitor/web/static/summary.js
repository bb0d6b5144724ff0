// One sentence on a fleet, for those who listen. It says what rarely changes, so that
// a fleet at work does not talk all the time.

import { integer } from "/shared/format.js";

export function summary(app) {
  const { figures, firing } = app;
  if (!figures) return "";
  const { alive, late, lost } = figures.agents;
  const agents = `${integer(alive)} agents alive, ${integer(late)} late, ${integer(lost)} lost.`;
  const errors = `${integer(figures.tasks.error_rate * 100)} per cent of the tasks fail.`;
  const fire = firing.length === 1 ? "alert fires" : "alerts fire";
  const alerts = firing.length ? `${integer(firing.length)} ${fire}.` : "No alert fires.";
  const heard = figures.following ? "" : " No broker of the fleet is heard.";
  return `${app.fleet}: ${agents} ${errors} ${alerts}${heard}`;
}
