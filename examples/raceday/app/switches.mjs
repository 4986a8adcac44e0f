// Lets a test break the app as apps break; nothing of it is there unless RACEDAY_SWITCHES=1.
//
//   POST /api/switches {"version": "2026-11-22", "how": "errs" | "silent" | "slow" | "works", "share": 0.5, "ms": 40}
//   POST /api/switches {"now": "2026-11-22T02:00:00Z"}     the app's clock, from now on; a prediction then takes 20 to 50 ms
//   POST /api/switches {"flush": true}                     answers when all reports are sent

const broken = new Map();
let pretends = false; // once the app's clock is told: a busy machine must not look like a slow version

/** Before a prediction: what a broken version does, and how long the prediction is said to take. */
export async function before(version, share, told) {
  const { how, upTo = 1, ms = 0 } = broken.get(version) ?? {};
  if (pretends) told.durationMs = 20 + 30 * Math.random();
  if (share >= upTo) return;
  if (how === "errs") throw new Error("a switch says that this version errs");
  if (how === "silent") throw Object.assign(new Error("it threw before it wrote anything"), { silent: true });
  if (how === "slow" && pretends) told.durationMs += ms;
  else if (how === "slow") await new Promise((resolve) => setTimeout(resolve, ms));
}

export async function turn({ version, how, share, ms, now, flush }, reports) {
  if (version) broken.set(version, { how, upTo: share, ms });
  if (now) {
    Date.now = () => Date.parse(now);
    pretends = true;
  }
  if (flush) await reports.flush(20_000);
  return { broken: Object.fromEntries(broken), now: new Date(Date.now()).toISOString(), dropped: reports.dropped };
}
