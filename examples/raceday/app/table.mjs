// The app's own table of predictions. A real app has its ORM; this one needs no package for SQLite
// (Python's driver, in a process beside it) and `pg` for Postgres.

import { spawn } from "node:child_process";

const NAMES = ["requestId", "predictionTime", "athleteId", "distance", "modelVersion", "arm", "finishS", "durationMs", "error", "cold"];
const TABLE = `CREATE TABLE IF NOT EXISTS predictions ("requestId" text PRIMARY KEY, "predictionTime" timestamp NOT NULL,
  "athleteId" text, "distance" text NOT NULL, "modelVersion" text NOT NULL, "arm" text NOT NULL,
  "finishS" double precision, "durationMs" double precision NOT NULL, "error" text, "cold" boolean NOT NULL)`;
const INSERT = `INSERT INTO predictions (${NAMES.map((name) => `"${name}"`).join(", ")}) VALUES `;

/** `{write(row), close()}` on the database at `url`; without one, rows go nowhere. */
export async function table(url) {
  if (!url) return { write() {}, async close() {} };
  return /^postgres(ql)?:/.test(url) ? postgres(url.replace(/^postgresql:/, "postgres:")) : sqlite(url.replace(/^sqlite:/, ""));
}

async function postgres(url) {
  const { default: pg } = await import("pg");
  const pool = new pg.Pool({ connectionString: url });
  await pool.query(TABLE.replace("timestamp", "timestamptz"));
  const insert = INSERT + `(${NAMES.map((_, index) => `$${index + 1}`).join(", ")})`;
  const write = (row) => pool.query(insert, NAMES.map((name) => row[name])).catch((error) => console.warn(`predictions: ${error.message}`));
  return { write, close: () => pool.end() };
}

function sqlite(path) {
  const program = `
import json, sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
database.execute("PRAGMA journal_mode = WAL")
database.execute(sys.argv[2])
for line in sys.stdin:
    database.execute(sys.argv[3], json.loads(line))
`;
  const insert = INSERT + `(${NAMES.map(() => "?").join(", ")})`;
  const child = spawn("python3", ["-c", program, path, TABLE, insert], { stdio: ["pipe", "inherit", "inherit"] });
  child.stdin.on("error", (error) => console.warn(`predictions: ${error.message}`));
  const write = (row) => child.stdin.write(JSON.stringify(NAMES.map((name) => row[name] ?? null)) + "\n");
  const close = () => new Promise((resolve) => child.on("close", resolve).stdin.end());
  return { write, close };
}
