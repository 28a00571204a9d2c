// Times and lengths of time, by the server's clock: that of whoever looks may be wrong.

let ahead = 0; // of our clock, ms

export const clock = {
  // hear takes the time of an answer. Its seconds are whole, so that a difference of two says nothing.
  hear(date) {
    const told = Date.parse(date ?? '');
    if (Number.isNaN(told)) return;
    const difference = Date.now() - told;
    ahead = Math.abs(difference) > 2000 ? difference : 0;
  },
  now: () => Date.now() - ahead,
};

const units = [['d', 86400], ['h', 3600], ['min', 60], ['s', 1]];

// length says a number of seconds in its two greatest units, such as 5 h 3 min.
export function length(seconds) {
  let rest = Math.max(0, Math.round(seconds));
  for (let at = 0; at < units.length; at++) {
    const [name, size] = units[at];
    const count = Math.floor(rest / size);
    if (count === 0 && at < units.length - 1) continue;
    rest -= count * size;
    const next = units[at + 1];
    const small = next && count < 10 ? Math.floor(rest / next[1]) : 0;
    return small > 0 ? `${count} ${name} ${small} ${next[0]}` : `${count} ${name}`;
  }
}

// isSet says that a time of the API is one: those that are unknown have the year 1, or aren't there.
export const isSet = (text) => Boolean(text) && Date.parse(text) > 0;

// absolute is a time in UTC, as the API has it, without the T.
export function absolute(text) {
  return isSet(text) ? `${new Date(text).toISOString().slice(0, 19).replace('T', ' ')} UTC` : 'unknown';
}

// relative is how far a time is from now.
export function relative(text) {
  const seconds = (Date.parse(text) - clock.now()) / 1000;
  if (Math.abs(seconds) < 1) return 'now';
  return seconds > 0 ? `in ${length(seconds)}` : `${length(-seconds)} ago`;
}

// ratioLeft is which part of a life is left, 0 to 1.
export function ratioLeft(notBefore, notAfter) {
  const begin = Date.parse(notBefore);
  const end = Date.parse(notAfter);
  if (!(end > begin)) return 0;
  return Math.min(1, Math.max(0, (end - clock.now()) / (end - begin)));
}
