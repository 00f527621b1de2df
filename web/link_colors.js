/* A colour for each type of this pack, on links and sockets. A colour palette that names one of the types wins. */

import { app } from '../../scripts/app.js'

const COLORS = {
  NADA_GENERATOR: '#9575ff',
  NADA_GUIDE: '#e6c229',
  NADA_SHIFT: '#26c6da',
  NADA_LAYERS: '#a1887f',
  NADA_OPTIONS: '#90a4ae',
  NADA_LATENTS: '#f06292',
  NADA_DOMAIN: '#9ccc65',
  NADA_SIMILARITY: '#ff8a65',
  NADA_ENCODER: '#4db6ac',
  NADA_DIRECTIONS: '#5c9dff',
  NADA_SNAPSHOTS: '#dce775',
  NADA_FACE_FRAMES: '#ffccbc'
}

/* The page empties the entries of all types when it loads a palette, hence an accessor instead of a value. */
function fill(table) {
  if (!table) return
  for (const [type, color] of Object.entries(COLORS)) {
    let chosen = table[type]
    Object.defineProperty(table, type, {
      configurable: true,
      enumerable: true,
      get: () => chosen || color,
      set: (value) => {
        chosen = value
      }
    })
  }
}

app.registerExtension({
  name: 'stylegan_nada.link_colors',
  setup() {
    fill(app.canvas?.constructor?.link_type_colors) // links
    fill(app.canvas?.default_connection_color_byType) // connected sockets of the classic renderer
    const style = document.createElement('style') // sockets of Nodes 2.0
    const variables = Object.entries(COLORS).map(([type, color]) => `--color-datatype-${type}: ${color};`)
    style.textContent = `:root { ${variables.join(' ')} }`
    document.head.append(style)
  }
})
