// Scroll the table down for half of the time and up again, so many pixels in a second at
// most; tell how long each frame took, in milliseconds.
async ([seconds, speed]) => {
  const body = document.querySelector(".vbody");
  const far = Math.min(body.scrollHeight - body.clientHeight, (speed * seconds) / 2);
  const frames = [];
  const begin = await new Promise(requestAnimationFrame);
  let before = begin;
  while (before - begin < seconds * 1000) {
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - before);
    before = now;
    const turn = ((now - begin) / 1000 / seconds) * 2;
    body.scrollTop = far * (turn < 1 ? turn : 2 - turn);
  }
  return frames;
};
