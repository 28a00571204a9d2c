// Runs before the page is drawn, so that it doesn't flash in other colours; and says so when the page can't start.
'use strict';

try {
  const theme = localStorage.getItem('signet-theme');
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch {
  // Without storage the system's colours hold.
}

addEventListener('error', (event) => {
  if (!(event.target instanceof HTMLScriptElement)) return;
  const line = document.getElementById('begin');
  if (line) line.textContent = 'The page did not arrive whole. Reload it.';
}, true);
