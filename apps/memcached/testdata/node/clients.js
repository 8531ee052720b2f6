// Talks to the server at host:port as two clients of Node's do: memjs, which
// speaks the binary protocol, and memcached, which speaks text. Ends with an error
// at the first thing that is not as it should be.
'use strict';
const { deepStrictEqual: same, rejects } = require('assert');
const { promisify } = require('util');
const memjs = require('memjs');
const Memcached = require('memcached');

const [host, port] = process.argv.slice(2);
const large = Buffer.from(Array.from({ length: 500000 }, (_, i) => i % 251));
const keys = Array.from({ length: 300 }, (_, i) => `key-${i}`);

async function binary() {
  const c = memjs.Client.create(`${host}:${port}`, { timeout: 20, conntimeout: 20, retries: 0, logger: { log() {} } });
  const get = async (key) => {
    const { value } = await c.get(key);
    return value === null ? null : value.toString();
  };
  same(await c.flush(), { [`${host}:${port}`]: true });
  same(await c.set('key', 'value', { expires: 100 }), true);
  same(await get('key'), 'value');
  same(await get('none'), null);
  same(await c.add('key', 'x', {}), false);
  same(await c.replace('key', 'new', {}), true);
  same(await c.replace('none', 'x', {}), false);
  same(await c.append('key', 'er'), true);
  same(await get('key'), 'newer'); // 1.3.2's prepend sends an append
  same((await c.increment('n', 1, { initial: 41 })).value, 41);
  same((await c.increment('n', 1, {})).value, 42);
  same((await c.decrement('n', 50, {})).value, 0);
  same(await c.touch('key', 50), true);
  same(await c.touch('none', 50), false);
  await Promise.all(keys.map((key) => c.set(key, `value of ${key}`, {})));
  same(await Promise.all(keys.map(get)), keys.map((key) => `value of ${key}`));
  same(await c.set('large', large, {}), true);
  same((await c.get('large')).value.equals(large), true);
  await rejects(c.set('large', Buffer.alloc(2 << 20), {}));
  same(await get('large'), null); // what was not stored leaves no old value
  same(await c.delete('key'), true);
  same(await c.delete('key'), false);
  const stats = await new Promise((done, failed) => c.stats((err, _, all) => (err ? failed(err) : done(all))));
  same(stats.curr_items, '301');
  same(stats.version, '1.6.18');
  c.quit();
}

async function text() {
  const c = new Memcached(`${host}:${port}`, { timeout: 20000, retries: 0, poolSize: 4 });
  const call = (name, ...args) => promisify(c[name]).apply(c, args);
  same(await call('flush'), [true]);
  same(await call('set', 'key', 'value', 100), true);
  same(await call('get', 'key'), 'value');
  same(await call('get', 'none'), undefined);
  const { cas } = await call('gets', 'key');
  same(await call('cas', 'key', 'swapped', cas, 100), true);
  same(await call('cas', 'key', 'x', cas, 100), false);
  await rejects(call('add', 'key', 'x', 0));
  same(await call('replace', 'key', 'new', 0), true);
  same(await call('append', 'key', 'er'), true);
  same(await call('prepend', 'key', 'a '), true);
  same(await call('get', 'key'), 'a newer');
  same(await call('set', 'n', 41, 0), true);
  same(await call('incr', 'n', 1), 42);
  same(await call('decr', 'n', 50), 0);
  same(await call('incr', 'none', 1), false);
  same(await call('touch', 'key', 50), true);
  await Promise.all(keys.map((key) => call('set', key, `value of ${key}`, 0)));
  same(await call('getMulti', [...keys, 'none']), Object.fromEntries(keys.map((key) => [key, `value of ${key}`])));
  same(await call('set', 'large', large, 0), true);
  same((await call('get', 'large')).equals(large), true);
  same(await call('del', 'key'), true);
  same(await call('del', 'key'), false);
  same((await call('version'))[0].version, '1.6.18');
  same((await call('stats'))[0].curr_items, 302);
  c.end();
}

(async () => {
  await binary();
  await text();
  console.log('ok');
})().catch((err) => {
  console.error(err);
  process.exit(1);
});
