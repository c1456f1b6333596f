// Moves events of "input" to "output" by transactions of a member, until it is killed: node-postgres with pg-cursor.
const { Client } = require('pg');
const Cursor = require('pg-cursor');

async function main() {
  const client = new Client({ host: process.env.SERVER_HOST, port: +process.env.SERVER_PORT, user: 'tester', database: 'millstream' });
  client.on('error', () => process.exit(3));
  await client.connect();
  await client.query(`DECLARE c CURSOR WITH HOLD FOR SELECT n FROM input
    EMIT CHANGES WITH (group = 'once', auto_offset_reset = 'earliest')`);
  for (;;) {
    try {
      await client.query('BEGIN');
      const cursor = client.query(new Cursor("FETCH 20 FROM c WITH (timeout = '100ms')"));
      for (;;) {
        const rows = await cursor.read(7);
        if (rows.length === 0) break;
        for (const { n } of rows) {
          pending.push(n);
        }
      }
      await cursor.close();
      for (const n of pending.splice(0)) {
        await client.query("INSERT INTO output VALUES ($1, $2, 'node-postgres')", [n, 2 * Number(n)]);
      }
      await client.query(Math.random() < 0.1 ? 'ROLLBACK' : 'COMMIT');
    } catch (error) {
      pending.length = 0;
      if (!error.code || !error.severity) throw error;
      await client.query('ROLLBACK');
    }
  }
}

const pending = [];
main().catch((error) => {
  console.error(error.message);
  process.exit(3);
});
