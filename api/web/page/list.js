// Lists that are too long to be shown whole: one page of them is asked for, and drawn, at a time.

import {Problem} from './api.js';
import {h, say, swap} from './dom.js';
import {coverage, notice, updated} from './parts.js';

export const pageRows = 100;
const searchRows = 500; // the most that the API gives at once
const searchPages = 20; // looked through before whoever searches is asked whether to go on

// Pages goes through a list. Fetch asks for a page of it: fetch({limit, continue}, signal). Matches selects items, which
// the API can't do by a part of a name; pages are then looked through until there are enough of them. So there are never
// more than pageRows and searchRows items here together.
export class Pages {
  #fetch;
  #matches;
  #starts = [''];
  #at = 0;

  constructor(fetch, matches = null) {
    this.#fetch = fetch;
    this.#matches = matches;
  }

  // load asks for the page. Looked is how many items were looked through for it; next whether another page may follow.
  async load(signal, progress = () => {}) {
    try {
      return await this.#load(signal, progress);
    } catch (error) {
      if (!(error instanceof Problem) || !error.badContinue || this.#at === 0) throw error;
      this.#starts = [''];
      this.#at = 0;
      return this.#load(signal, progress);
    }
  }

  async #load(signal, progress) {
    const at = Math.min(this.#at, this.#starts.length - 1); // somebody may move on meanwhile
    const items = [];
    let looked = 0;
    let next = this.#starts[at];
    let list;
    for (let pages = 0; ;) {
      list = await this.#fetch({limit: this.#matches ? searchRows : pageRows, continue: next}, signal);
      items.push(...(this.#matches ? list.items.filter(this.#matches) : list.items));
      looked += list.items.length;
      next = list.continue ?? '';
      if (!this.#matches || next === '' || items.length >= pageRows || ++pages >= searchPages) break;
      progress(looked, items.length);
    }
    if (next) this.#starts[at + 1] = next;
    else this.#starts.length = at + 1;
    return {list, items, looked, page: at + 1, next: next !== '', searching: this.#matches !== null};
  }

  move(by) {
    this.#at = Math.max(0, Math.min(this.#starts.length - 1, this.#at + by));
  }
}

// Finder shows a page of a list, always of what was asked for last.
export class Finder {
  #screen;
  #into;
  #pages;
  #typed;
  #turn = 0;
  #asking = new AbortController();

  // Into says where: list is the element for the items, line the one for how many there are, heading what has the focus
  // after a step to another page; draw makes elements of the items, count says how many a result has, and none that there
  // are none.
  constructor(screen, into) {
    this.#screen = screen;
    this.#into = into;
  }

  // begin asks for something else from now on. Typed says that somebody chose it, who may have to choose otherwise.
  begin(fetch, matches, typed) {
    this.#asking.abort(new DOMException('something else is looked for', 'AbortError'));
    this.#asking = new AbortController();
    this.#pages = new Pages(fetch, matches);
    this.#typed = typed;
  }

  async load() {
    const turn = ++this.#turn;
    const asking = this.#asking.signal;
    const signal = AbortSignal.any([this.#screen.signal, asking]);
    const old = () => signal.aborted || turn !== this.#turn;
    const {list, line, draw, count, none} = this.#into;
    let result;
    try {
      result = await this.#pages.load(signal, (looked, matches) => {
        if (!old()) line.textContent = `${looked} looked through, ${matches} match so far`;
      });
    } catch (error) {
      if (asking.aborted || turn !== this.#turn) return;
      // What somebody typed, such as a namespace that they may not see, is no reason to take away what they type into.
      if (!this.#typed || (error.status !== 403 && error.status !== 422)) throw error;
      line.textContent = '';
      swap(list, notice('bad', 'This can’t be looked for: ', why(error)));
      say('This can’t be looked for.');
      return;
    }
    if (old()) return;
    const text = count(result);
    line.replaceChildren(text, ' ', updated());
    say(text);
    swap(list, result.items.length ? draw(result.items) : h('p', {class: 'empty'}, none()), pager(result, (by) => this.#go(by)), coverage(result.list));
  }

  // search is load, where nobody waits for it.
  async search() {
    try {
      await this.load();
    } catch (error) {
      this.#screen.fail(error);
    }
  }

  async #go(by) {
    this.#pages.move(by);
    await this.search();
    this.#into.heading.focus();
  }
}

const why = (error) => error.errors.map((one) => `${one.location?.replace('query.', '')}: ${one.message}`).join('; ') || error.message;

// pager are the buttons to go to other pages, none where there is only one.
function pager(result, go) {
  if (result.page === 1 && !result.next) return null;
  const button = (by, text, able) => h('button', {type: 'button', disabled: !able, 'data-key': `page ${by}`, on: {click: () => go(by)}}, text);
  return h('nav', {class: 'pager', 'aria-label': 'Pages'},
    button(-1, 'Previous page', result.page > 1),
    h('span', null, `Page ${result.page}`, result.next ? '' : ', the last'),
    button(1, result.searching ? 'Search on' : 'Next page', result.next));
}
