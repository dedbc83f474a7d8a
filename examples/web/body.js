// Draws a body over its image with WebGL.

const VERTEX = `#version 300 es
in vec3 position, normal;
uniform vec3 translation;
uniform vec2 center, image;  // of the square crop; width and height; pixels
uniform float side, focal;   // of the square, pixels; in sides
out vec3 turned;
void main() {
  vec3 point = position + translation;
  vec2 pixel = center * point.z + side * focal * point.xy;
  vec2 place = 2.0 * pixel / image - point.z;
  turned = normal;
  // Depths near the body, of which there is one; the camera is tens of meters away.
  gl_Position = vec4(place.x, -place.y, position.z / 3.0 * point.z, point.z);
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec3 turned;
out vec4 color;
void main() {
  float light = dot(normalize(turned), normalize(vec3(0.35, -0.55, -0.75)));
  float front = -normalize(turned).z;
  vec3 shaded = vec3(0.62, 0.73, 0.87) * (0.42 + 0.62 * max(light, 0.0));
  color = vec4(shaded + 0.12 * pow(1.0 - max(front, 0.0), 3.0), 1.0);
}`;

export class BodyPainter {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {Uint16Array} faces (F, 3)
   * @throws {Error} the browser has no WebGL 2
   */
  constructor(canvas, faces) {
    const gl = canvas.getContext('webgl2', { antialias: true, preserveDrawingBuffer: true });
    if (!gl) throw Error('This browser has no WebGL 2, so bodies cannot be drawn.');
    this.gl = gl;
    this.faces = faces;
    this.program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(this.program, shader);
    }
    gl.linkProgram(this.program);
    if (!gl.getProgramParameter(this.program, gl.LINK_STATUS)) {
      throw Error(`WebGL: ${gl.getProgramInfoLog(this.program)}`);
    }
    gl.useProgram(this.program);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces, gl.STATIC_DRAW);
    this.buffers = ['position', 'normal'].map((name) => {
      const place = gl.getAttribLocation(this.program, name), buffer = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
      return buffer;
    });
    gl.enable(gl.DEPTH_TEST);
  }

  clear() {
    this.gl.clearColor(0, 0, 0, 0);
    this.gl.clear(this.gl.COLOR_BUFFER_BIT | this.gl.DEPTH_BUFFER_BIT);
  }

  /**
   * @param body `vertices` (V * 3) and `translation` (3), meters; `center` (2) and `side` of the
   *   square crop, pixels
   * @param {number} focal length of the crop's camera, in sides of the crop
   * @param {number[]} image its width and height
   */
  draw({ vertices, translation, center, side }, focal, image) {
    const { gl, program } = this;
    gl.viewport(0, 0, gl.canvas.width, gl.canvas.height);
    this.clear();
    [vertices, normals(vertices, this.faces)].forEach((array, i) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[i]);
      gl.bufferData(gl.ARRAY_BUFFER, array, gl.DYNAMIC_DRAW);
    });
    const place = (name) => gl.getUniformLocation(program, name);
    gl.uniform3fv(place('translation'), translation);
    gl.uniform2fv(place('center'), center);
    gl.uniform2fv(place('image'), image);
    gl.uniform1f(place('side'), side);
    gl.uniform1f(place('focal'), focal);
    gl.drawElements(gl.TRIANGLES, this.faces.length, gl.UNSIGNED_SHORT, 0);
  }
}

/** Sums of the normals of the faces at each vertex. */
function normals(vertices, faces) {
  const sums = new Float32Array(vertices.length);
  for (let f = 0; f < faces.length; f += 3) {
    const [a, b, c] = [3 * faces[f], 3 * faces[f + 1], 3 * faces[f + 2]];
    const ux = vertices[b] - vertices[a], uy = vertices[b + 1] - vertices[a + 1], uz = vertices[b + 2] - vertices[a + 2];
    const vx = vertices[c] - vertices[a], vy = vertices[c + 1] - vertices[a + 1], vz = vertices[c + 2] - vertices[a + 2];
    const x = uy * vz - uz * vy, y = uz * vx - ux * vz, z = ux * vy - uy * vx;
    for (const at of [a, b, c]) {
      sums[at] += x;
      sums[at + 1] += y;
      sums[at + 2] += z;
    }
  }
  return sums;
}
