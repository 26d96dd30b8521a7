// Tooltips, copy buttons and the slider: without it the page has native tooltips, and the axis of
// the plot still switches.
(function () {
  var tip = document.createElement('div'), over = null;
  tip.id = 'tip';
  tip.hidden = true;
  document.body.appendChild(tip);

  function hide() {
    tip.hidden = true;
    if (over) over.classList.remove('over');
    over = null;
  }

  function show(point) {
    if (point === over) return;
    hide();
    over = point;
    point.classList.add('over');
    tip.textContent = point.dataset.tip;
    tip.hidden = false;
    var at = point.querySelector('.hit').getBoundingClientRect();
    var left = at.left + at.width / 2 - tip.offsetWidth / 2, above = at.top - tip.offsetHeight - 4;
    tip.style.left = Math.max(6, Math.min(innerWidth - tip.offsetWidth - 6, left)) + 'px';
    tip.style.top = (above > 0 ? above : at.bottom + 4) + 'px';
  }

  document.querySelectorAll('.chart').forEach(function (chart) {
    var points = Array.from(chart.querySelectorAll('[data-tip]'));
    points.forEach(function (point) {
      point.querySelector('title').remove();
      point.addEventListener('focus', function () { show(point); });
      point.addEventListener('blur', hide);
    });
    // points lie close together: the nearest one is meant, not the one drawn last
    function near(event) {
      var best = null, least = 24;
      points.forEach(function (point) {
        var at = point.querySelector('.hit').getBoundingClientRect();
        var far = Math.hypot(
          event.clientX - at.left - at.width / 2, event.clientY - at.top - at.height / 2);
        if (far <= least) { best = point; least = far; }
      });
      if (best) show(best); else hide();
    }
    if (!points.length) return;
    chart.addEventListener('pointermove', near);
    chart.addEventListener('pointerdown', near);
    chart.addEventListener('pointerleave', hide);
  });
  addEventListener('scroll', hide, { passive: true });

  document.querySelectorAll('.code').forEach(function (box) {
    var button = document.createElement('button'), pre = box.querySelector('pre');
    button.type = 'button';
    button.textContent = 'copy';
    button.addEventListener('click', function () {
      function mark() {
        getSelection().selectAllChildren(pre);
        button.textContent = 'selected';
      }
      function copied() { button.textContent = 'copied'; }
      if (!navigator.clipboard) mark();
      else navigator.clipboard.writeText(pre.textContent).then(copied, mark);
      setTimeout(function () { button.textContent = 'copy'; }, 1500);
    });
    box.appendChild(button);
  });

  var box = document.getElementById('budget');
  if (!box) return;
  box.hidden = false;
  var told = JSON.parse(box.dataset.told), slider = document.getElementById('slider');
  var limit = document.getElementById('limit'), answer = document.getElementById('answer');

  function text(value, unit) {
    var units = { time: ['s', 'ms', 'µs', 'ns'], bytes: ['TB', 'GB', 'MB', 'kB', 'B'] };
    var names = units[unit] || ['T', 'G', 'M', 'k', ''], size = unit === 'time' ? 1 : 1e12, i = 0;
    while (i < names.length - 1 && value < size) { size /= 1000; i++; }
    return (Number((value / size).toPrecision(3)) + ' ' + names[i]).trim();
  }

  function choose() {
    var n = +box.querySelector('input[name=budget]:checked').value;
    var at = told.at[n], unit = told.units[n], best = null;
    var rows = told.rows.filter(function (row) { return row.costs[at] !== null; });
    rows.sort(function (a, b) { return a.costs[at] - b.costs[at]; });
    var least = rows[0], low = least.costs[at] * .8, high = rows[rows.length - 1].costs[at] * 1.1;
    var budget = low * Math.pow(high / low, slider.value / 1000);
    rows.forEach(function (row) {
      var gain = best ? row.quality - best.quality : 0;
      var better = !best || (told.higher ? gain > 0 : gain < 0);
      if (row.costs[at] <= budget && better) best = row;
    });
    limit.textContent = 'Budget: ' + text(budget, unit) + ' ' + told.whats[n];
    if (best) {
      var verdict = best.verdict && '. Against plain distillation of its size: ' + best.verdict;
      var cost = ', with ' + text(best.costs[at], unit) + verdict + '.';
      answer.textContent = best.name + ': ' + told.label + ' ' + best.shown + cost;
    } else {
      var need = text(least.costs[at], unit) + ', ' + least.name + '.';
      answer.textContent = 'None: the least that a Student needs is ' + need;
    }
    document.querySelectorAll('[data-name]').forEach(function (point) {
      point.classList.toggle('chosen', !!best && point.dataset.name === best.name);
    });
  }

  slider.addEventListener('input', choose);
  box.querySelectorAll('input[name=budget]').forEach(function (choice) {
    choice.addEventListener('change', choose);
  });
  choose();
})();
